# OLOR on OpenCLIP ViT-B/16 with Adam, PACS: the paper's Table 7.
_base_ = ['./full_vit-base-p16_openclip-laion2b-pre_8xb16_pacs.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-2, min_level=0.0, power=2),
)
