# What stands for VPT on ConvNeXt-B in the OLOR paper, PACS: a border of 10 learnable pixels, and the head. Batch and
# learning rate are the paper's for methods that train a part, width and start of the border its authors' code's.
_base_ = ['./full_convnext-base_8xb16_pacs.py']

model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='PaddingPrompt', size=224, width=10))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=2e-2))
auto_scale_lr = dict(base_batch_size=256)
