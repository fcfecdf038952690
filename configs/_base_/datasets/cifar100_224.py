# 50,000 and 10,000 images; mmpretrain fetches them where they are missing.
_base_ = ['./arrays_224.py']

dataset_type = 'CIFAR100'
data_root = 'data/cifar100'

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
