# The head alone is trained: linear probing of ConvNeXt-B with SGD, CIFAR-100.
_base_ = ['./full_convnext-base_8xb16_cifar100.py']

model = dict(backbone=dict(frozen_stages=4, norm_cfg=dict(type='LN2d', eps=1e-6, requires_grad=False)))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=4e-2))
auto_scale_lr = dict(base_batch_size=512)
