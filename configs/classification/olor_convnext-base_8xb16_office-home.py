# OLOR on ConvNeXt-B with SGD, OfficeHome: the paper's Table 6.
_base_ = ['./full_convnext-base_8xb16_office-home.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1.0, min_level=0.0, power=1),
)
