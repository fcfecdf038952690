# OLOR on ViT-B/16 with Adam, CIFAR-100: the paper's Table 6.
_base_ = ['./full_vit-base-p16_8xb16_cifar100.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=5e-3, min_level=0.0, power=2),
)
