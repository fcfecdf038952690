# L2-SP on ViT-B/16 with Adam, PACS: the loss gains alpha/2 ||theta - theta_0||^2, and beta/2 ||theta||^2 of the head.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

# alpha is the number of the OLOR paper, which took it on the mean of squares: docs/methods.md says what that comes to.
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(l2_sp=dict(alpha=1e-2, beta=1e-2)),
)
