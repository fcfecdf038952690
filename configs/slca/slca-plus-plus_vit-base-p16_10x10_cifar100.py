# SLCA++ with ViT-B/16, CIFAR-100 in 10 tasks of 10 classes: LoRA, norms, biases and the class token are trained.
_base_ = [
    './slca_vit-base-p16_10x10_cifar100.py',
    '../_base_/slca-plus-plus.py',
]

incremental = {{_base_.slca_plus_plus.incremental}}
model = {{_base_.slca_plus_plus.model}}
optim_wrapper = {{_base_.slca_plus_plus.optim_wrapper}}
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=20, eta_min=1e-4)]
