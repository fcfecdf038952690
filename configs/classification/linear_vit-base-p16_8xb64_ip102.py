# The head alone is trained: linear probing of ViT-B/16 with Adam, IP102.
_base_ = ['./full_vit-base-p16_8xb16_ip102.py']

model = dict(backbone=dict(frozen_stages=12))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
auto_scale_lr = dict(base_batch_size=512)
