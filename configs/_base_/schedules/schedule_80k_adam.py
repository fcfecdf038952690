# mmseg's schedule of 80,000 iterations for ViT, with the paper's optimizer in place of AdamW.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=80000, by_epoch=False),
]

optim_wrapper = dict(
    type='OptimWrapper',
    # The learning rate is mmseg's, the paper gives none. Its runs have no weight decay.
    optimizer=dict(type='Adam', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.0),
)

# The learning rate above is for 16 images a step: 8 GPUs with 2 images each. --auto-scale-lr adapts it to others.
auto_scale_lr = dict(enable=False, base_batch_size=16)
