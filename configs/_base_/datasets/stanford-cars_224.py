# 8,144 images to train, 8,041 to test.
_base_ = ['./images_224.py']

dataset_type = 'StanfordCars'
data_root = 'data/stanford_cars'

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
