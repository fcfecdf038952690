# 62,500 images to train, 7,300 to choose the epoch by; results are for the test split, 100 of each of the 365 classes.
_base_ = ['./images_224.py']

dataset_type = 'olor_mm.PlacesLT'
data_root = 'data/places_lt'

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split='val'))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
