# DTL+ on ViT-B/16, PACS: DTL with a convolution over the patch tokens, shared by all blocks.
_base_ = ['./dtl_vit-base-p16_8xb4_pacs.py']

model = dict(method=dict(plus=True, kernel_size=3))
