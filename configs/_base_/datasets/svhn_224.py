# 73,257 images to train (split='train+extra' adds 531,131 easier ones) and 26,032 to test.
_base_ = ['./arrays_224.py']

dataset_type = 'olor_mm.SVHN'
data_root = 'data/svhn'

# Digits are not flipped, and the crop is a large one: mmpretrain's default, from 8% of the area on, would often show a
# stroke of the digit or its neighbour.
train_pipeline = [
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.7, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
