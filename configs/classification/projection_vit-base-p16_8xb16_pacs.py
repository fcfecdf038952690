# Projection onto balls around the pre-trained weights, ViT-B/16 with Adam, PACS.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

# ||theta - theta_0|| <= 1 for each tensor. Not tuned: TPGM and FTP learn a radius for each layer.
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(rule='projection', radius=1.0),
)
