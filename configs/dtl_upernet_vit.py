# DTL on UperNet's ViT-B/16, ADE20K, to compare olor_upernet_vit.py with. The maps of blocks 3 and 6 come before the
# first block that is adapted, 7.
_base_ = ['./baseline_upernet_vit.py']

model = dict(type='olor_mm.Tuned', of='EncoderDecoder', method=dict(type='DTL', rank=2, start_block=7))
