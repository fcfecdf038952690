# What SLCA++ has otherwise than SLCA, on any ViT of mmpretrain. LoRA learns at half of the head's rate in the first
# task, at a tenth after it.
slca_plus_plus = dict(
    model=dict(
        type='olor_mm.Tuned',
        of='ImageClassifier',
        method=dict(
            type='LoRA',
            rank=4,
            targets=[r'\.attn\.qkv$', r'\.ffn\.layers\.0\.0$', r'\.ffn\.layers\.1$'],
            rows='all',
            init='svd',
            scale=0.8,
            train=[r'\.ln\d\.', r'\.bias$', 'cls_token'],
        ),
        head=dict(feature_scale=0.02),
    ),
    optim_wrapper=dict(
        paramwise_cfg=dict(
            custom_keys={
                'backbone': dict(lr_mult=0.1),
                'head.norm': dict(lr_mult=0.1),
                'attn.qkv.lora.': dict(lr_mult=0.5),
                'ffn.layers.0.0.lora.': dict(lr_mult=0.5),
                'ffn.layers.1.lora.': dict(lr_mult=0.5),
            }
        )
    ),
    incremental=dict(
        alignment=dict(scaling='sample'),
        later=dict(
            optim_wrapper=dict(
                paramwise_cfg=dict(
                    custom_keys={
                        'attn.qkv.lora.': dict(lr_mult=0.1),
                        'ffn.layers.0.0.lora.': dict(lr_mult=0.1),
                        'ffn.layers.1.lora.': dict(lr_mult=0.1),
                    }
                )
            )
        ),
    ),
)
