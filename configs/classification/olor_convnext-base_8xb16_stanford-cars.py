# OLOR on ConvNeXt-B with SGD, Stanford Cars: the paper's Table 6.
_base_ = ['./full_convnext-base_8xb16_stanford-cars.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-4, min_level=0.0, power=2),
)
