# Plain fine-tuning, to compare olor_upernet_vit.py with: mmseg's 80k recipe for UperNet on ADE20K, with Adam.
_base_ = [
    './_base_/models/upernet_vit-b16_mln.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/schedule_80k_adam.py',
    './_base_/segmentation_runtime.py',
]
