default_scope = 'mmpretrain'

# Registers the rollback, the data sets that mmpretrain lacks, and the checkpoint loaders.
custom_imports = dict(imports=['olor_mm'], allow_failed_imports=False)

# The best epoch is chosen on the val loader. Where a data set has no validation split that loader reads the test split,
# and the best epoch flatters: report the last one.
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='olor_mm.DurableCheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1', rule='greater'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
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
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

log_level = 'INFO'
load_from = None
resume = False
