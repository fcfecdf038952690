# The paper does not say how it divided the set. Here all domains train and test: of five folds, shared out by domain
# and class, the first is the test split.
_base_ = ['./images_224.py']

dataset_type = 'olor_mm.OfficeHome'
data_root = 'data/office_home'

train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
