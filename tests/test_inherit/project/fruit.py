# A config of the project: nothing of olor_mm in it.
default_scope = 'orchard'
model = dict(
    type='FruitClassifier',
    backbone=dict(type='Trunk', init_cfg=dict(type='Pretrained', checkpoint='trunk.pth')),
    num_classes=2,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type='Fruit'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
param_scheduler = dict(type='ConstantLR', factor=0.5, by_epoch=False, begin=0, end=1)
randomness = dict(seed=0)
work_dir = 'work_dirs/fruit'
