# OLOR on ViT-B/16 with Adam, PACS: the paper's Table 7, other than in
# Table 6. Without OLOR its runs are those of full_vit-base-p16_8xb16_pacs and linear_vit-base-p16_8xb64_pacs.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-2, min_level=0.0, power=2),
)
