# The biases and the head are trained (BitFit): ViT-B/16 with Adam, PACS.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='BitFit'))
# So few parameters take a higher learning rate; the range that its authors searched ends here.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
