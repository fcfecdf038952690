# Full fine-tuning of ViT-B/16 with Adam, Places-LT: what OLOR is compared with.
_base_ = [
    '../_base_/models/vit-base-p16_in21k.py',
    '../_base_/datasets/places-lt_224.py',
    '../_base_/schedules/finetune_adam.py',
    '../_base_/schedules/finetune_50e.py',
    '../_base_/classification_runtime.py',
]

model = dict(head=dict(num_classes=365))
