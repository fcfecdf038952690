# Plain fine-tuning, to compare olor_maskrcnn_convnext.py with: mmdet's 1x recipe for Mask R-CNN on COCO 2017.
_base_ = [
    './_base_/models/maskrcnn_convnext-b_fpn.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/default_runtime.py',
]
