# The biases are trained, and the neck and the heads (BitFit): UperNet with a ViT-B/16, ADE20K.
_base_ = ['./baseline_upernet_vit.py']

model = dict(type='olor_mm.Tuned', of='EncoderDecoder', method=dict(type='BitFit'))
