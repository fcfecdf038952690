# OLOR on ViT-B/16 with Adam, IP102: the paper's Table 6.
_base_ = ['./full_vit-base-p16_8xb16_ip102.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-1, min_level=0.0, power=1),
)
