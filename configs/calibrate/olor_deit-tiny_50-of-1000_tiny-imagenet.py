# The same with OLOR.
_base_ = ['./full_deit-tiny_50-of-1000_tiny-imagenet.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=5e-3, min_level=0.0, power=2),
)
