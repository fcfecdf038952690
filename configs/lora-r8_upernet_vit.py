# LoRA of rank 8 on q and v of UperNet's ViT-B/16, ADE20K, to compare olor_upernet_vit.py with. Neck and heads are
# trained as a whole.
_base_ = ['./baseline_upernet_vit.py']

model = dict(type='olor_mm.Tuned', of='EncoderDecoder', method=dict(type='LoRA', rank=8, alpha=8))
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook'), dict(type='olor_mm.SaveTrainedHook')]
