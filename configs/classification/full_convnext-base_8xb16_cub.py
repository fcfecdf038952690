# Full fine-tuning of ConvNeXt-B with SGD, CUB-200-2011: what OLOR is compared with.
_base_ = [
    '../_base_/models/convnext-base_in21k.py',
    '../_base_/datasets/cub_224.py',
    '../_base_/schedules/finetune_sgd.py',
    '../_base_/schedules/finetune_50e.py',
    '../_base_/classification_runtime.py',
]

model = dict(head=dict(num_classes=200))
