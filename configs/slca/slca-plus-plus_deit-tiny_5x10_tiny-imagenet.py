# SLCA++ in minutes on a CPU: DeiT-tiny, 50 classes of Tiny-ImageNet in 5 tasks. It compares with no paper.
_base_ = [
    './slca_deit-tiny_5x10_tiny-imagenet.py',
    '../_base_/slca-plus-plus.py',
]

incremental = {{_base_.slca_plus_plus.incremental}}
model = {{_base_.slca_plus_plus.model}}
optim_wrapper = {{_base_.slca_plus_plus.optim_wrapper}}
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=5, eta_min=1e-4)]
