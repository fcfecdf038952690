# The paper's optimizer for ViT. It trained in mixed precision: add --amp, which is not set here because
# AmpOptimWrapper does not start without an accelerator.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0),
)

# The learning rate is for 128 images a step: 8 GPUs with 16 images each. --auto-scale-lr adapts it to others.
auto_scale_lr = dict(enable=False, base_batch_size=128)
