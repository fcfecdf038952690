# Block Expansion of UperNet's ViT-B/16, ADE20K, to compare olor_upernet_vit.py with.
_base_ = ['./baseline_upernet_vit.py']

# One new block right in front of each of the four maps that the neck takes.
model = dict(type='olor_mm.Tuned', of='EncoderDecoder', method=dict(type='BlockExpansion', blocks=4))
