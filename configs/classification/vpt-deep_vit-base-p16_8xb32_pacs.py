# VPT-Deep of ViT-B/16, PACS: 10 prompt tokens for each block, and the head. Batch and learning rate are those of the
# OLOR paper for methods that train a part; how deep its prompts are is not known here.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='VPT', tokens=10, deep=True))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=256)
