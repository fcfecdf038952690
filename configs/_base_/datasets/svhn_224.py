# 73,257 images to train (split='train+extra' adds 531,131 easier ones) and 26,032 to test.
_base_ = ['./arrays_224.py']

dataset_type = 'olor_mm.SVHN'
data_root = 'data/svhn'

# Digits are not flipped.
train_pipeline = [
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
