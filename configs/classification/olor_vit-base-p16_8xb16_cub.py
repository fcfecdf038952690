# OLOR on ViT-B/16 with Adam, CUB-200-2011: the paper's Table 6.
_base_ = ['./full_vit-base-p16_8xb16_cub.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=5e-2, min_level=0.0, power=2),
)
