# Plain fine-tuning on domain B of what config.py trained on domain A; tools/demo/run.py gives `load_from`.
_base_ = ['./config.py']

train_dataloader = dict(dataset=dict(ann_file='B/annotations/train.json', data_prefix=dict(img='B/train/')))

train_cfg = dict(max_iters=300, val_interval=30)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=300, eta_min=0.0),
]
default_hooks = dict(checkpoint=dict(interval=30))
