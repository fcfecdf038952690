# L2-SP on UperNet with a ViT-B/16, ADE20K: to compare olor_upernet_vit.py with.
_base_ = ['./baseline_upernet_vit.py']

# The backbone is pre-trained; all else is new, and decays towards 0.
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(l2_sp=dict(alpha=1e-2, beta=1e-2)),
)
