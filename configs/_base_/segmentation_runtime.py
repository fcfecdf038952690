default_scope = 'mmseg'

# 'olor_mm' registers the rollback and the loaders of checkpoints, the translation of their names among them.
custom_imports = dict(imports=['olor_mm'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='olor_mm.DurableCheckpointHook', by_epoch=False, interval=8000),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)

# With a fixed seed and this hook a run that was stopped and resumed ends with the same weights as one that never
# stopped: see default_runtime.py.
randomness = dict(seed=0)
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook')]

# In several processes batch norms are turned into torch's SyncBatchNorm.
sync_bn = 'torch'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)

log_level = 'INFO'
load_from = None
resume = False
