# DTL's recipe: 10 epochs of warm-up from 1e-7, then a cosine to 0, both by iteration. It trained in mixed precision:
# add --amp, which is not set here because AmpOptimWrapper does not start without an accelerator.
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# The paper's learning rates are 1e-4 to 1e-2, by data set.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, end=100, convert_to_iter_based=True),
]

# For 32 images a step: 8 GPUs with 4 images each. --auto-scale-lr adapts it to others.
auto_scale_lr = dict(enable=False, base_batch_size=32)
