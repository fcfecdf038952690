# The last 3 of 12 blocks, the last norm and the head are trained: ViT-B/16 with Adam, PACS.
_base_ = ['./full_vit-base-p16_8xb16_pacs.py']

model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='TopK', k=3))
