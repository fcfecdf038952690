# LoRA of rank 8 on q and v of ViT-B/16, PACS. Batch and learning rate are those of the OLOR paper for methods that
# train a part; it has no LoRA itself. Checkpoints hold what is trained, and init_cfg brings the rest.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='LoRA', rank=8, alpha=8))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=256)
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook'), dict(type='olor_mm.SaveTrainedHook')]
