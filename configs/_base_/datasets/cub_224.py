# CUB-200-2011: 5,994 images to train, 5,794 to test.
_base_ = ['./images_224.py']

dataset_type = 'CUB'
data_root = 'data/CUB_200_2011'

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
