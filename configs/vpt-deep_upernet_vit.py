# VPT-Deep of UperNet's ViT-B/16, ADE20K, to compare olor_upernet_vit.py with: prompts, neck and heads are trained.
_base_ = ['./baseline_upernet_vit.py']

model = dict(type='olor_mm.Tuned', of='EncoderDecoder', method=dict(type='VPT', tokens=10, deep=True))
# Twice that of the baseline: what the OLOR paper does where it classifies.
optim_wrapper = dict(optimizer=dict(lr=1.2e-4))
