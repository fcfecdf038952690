# Block Expansion of ViT-B/16 by 3 blocks, PACS: its paper's recipe on the weights that OLOR starts from here. The paper
# itself started from DINO's ViT-B/16: --pretrained takes a file of that.
_base_ = [
    '../_base_/models/vit-base-p16_in21k.py',
    '../_base_/datasets/pacs_224.py',
    '../_base_/schedules/block-expansion_10k.py',
    '../_base_/classification_runtime.py',
]

model = dict(
    type='olor_mm.Tuned',
    of='ImageClassifier',
    method=dict(type='BlockExpansion', blocks=3),
    head=dict(num_classes=7),
)

# Steps are counted, not epochs.
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500))
log_processor = dict(by_epoch=False)
