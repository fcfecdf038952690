# OLOR on ViT-B/16 with Adam, Stanford Cars: the paper's Table 6.
_base_ = ['./full_vit-base-p16_8xb16_stanford-cars.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-2, min_level=0.0, power=4),
)
