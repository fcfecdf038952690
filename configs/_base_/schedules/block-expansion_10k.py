# The recipe of the paper on Block Expansion (arXiv 2404.17245), 10,000 steps of 128 images. It tried the learning rates
# 0.05, 0.01 and 0.005 on each data set and kept the best of the checkpoints that were validated.
train_cfg = dict(by_epoch=False, max_iters=10000, val_interval=500)
val_cfg = dict()
test_cfg = dict()

param_scheduler = [
    dict(type='LinearLR', start_factor=0.002, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=500, end=10000),
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0),
)

# The learning rate is for 128 images a step: 8 GPUs with 16 images each. --auto-scale-lr adapts it to others.
auto_scale_lr = dict(enable=False, base_batch_size=128)
