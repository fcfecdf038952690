# 45,095 images to train, 7,508 to choose the epoch by; results are for the test split of 22,619.
_base_ = ['./images_224.py']

dataset_type = 'olor_mm.IP102'
data_root = 'data/ip102'

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split='val'))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
