# VPT-Shallow of ViT-B/16, PACS: 10 prompt tokens in front of the first block, and the head.
_base_ = ['./vpt-deep_vit-base-p16_8xb32_pacs.py']

model = dict(method=dict(deep=False))
