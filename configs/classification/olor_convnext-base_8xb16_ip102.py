# OLOR on ConvNeXt-B with SGD, IP102: the paper's Table 6.
_base_ = ['./full_convnext-base_8xb16_ip102.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=5e-3, min_level=0.0, power=1),
)
