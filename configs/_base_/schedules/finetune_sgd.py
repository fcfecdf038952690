# The paper's optimizer for ConvNeXt, torch's plain SGD as in its authors' script. Without dampening the momentum adds
# up, and a step is 10 times as long as in the paper's Algorithm 1; dampening=0.9 is that algorithm but for its first
# step. The paper trained in mixed precision: add --amp, which is not set here because AmpOptimWrapper does not start
# without an accelerator.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-2, momentum=0.9, weight_decay=0.0),
)

# The learning rate is for 128 images a step: 8 GPUs with 16 images each. --auto-scale-lr adapts it to others.
auto_scale_lr = dict(enable=False, base_batch_size=128)
