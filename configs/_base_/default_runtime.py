default_scope = 'mmdet'

# 'olor_mm' registers the rollback and the safe checkpoint loader; 'mmpretrain.models' holds the ConvNeXt.
custom_imports = dict(imports=['olor_mm', 'mmpretrain.models'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='olor_mm.DurableCheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)

# With a fixed seed and this hook, what is drawn at random depends on seed, epoch and iteration alone, so that a run
# that was stopped and resumed ends with the same weights as one that never stopped.
randomness = dict(seed=0)
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
