# DTL on ViT-B/16, PACS: its paper's recipe on the weights that OLOR starts from here.
_base_ = [
    '../_base_/models/vit-base-p16_in21k.py',
    '../_base_/datasets/pacs_224.py',
    '../_base_/schedules/dtl_100e.py',
    '../_base_/classification_runtime.py',
]

model = dict(
    type='olor_mm.Tuned',
    of='ImageClassifier',
    method=dict(type='DTL', rank=2, start_block=7),
    # The mean of the patch tokens goes through the pre-trained final norm to the head.
    backbone=dict(out_type='avg_featmap', final_norm=False),
    head=dict(num_classes=7),
)
train_dataloader = dict(batch_size=4)
