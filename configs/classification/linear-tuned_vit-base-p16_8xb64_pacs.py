# The head alone is trained: linear_vit-base-p16_8xb64_pacs.py by a method, which works on models of any kind.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='Linear'))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
auto_scale_lr = dict(base_batch_size=512)
