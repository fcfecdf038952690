# Full fine-tuning of OpenCLIP ViT-B/16 with Adam, PACS: what OLOR is compared with.
_base_ = [
    '../_base_/models/vit-base-p16_openclip-laion2b.py',
    '../_base_/datasets/pacs_224.py',
    '../_base_/schedules/finetune_adam.py',
    '../_base_/schedules/finetune_30e.py',
    '../_base_/classification_runtime.py',
]

model = dict(head=dict(num_classes=7))
