# Selective projection decay (SPD) on ViT-B/16 with Adam, PACS.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

# w = 1 in every layer: where gradient and way disagree, a tensor goes no farther than it was before the step.
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(rule='spd', max_level=1.0, min_level=1.0),
)
