"""What makes the commands of the pages short: further arguments, by what the command is."""

from __future__ import annotations

from ._shell import Rules

__all__ = ['LONGER', 'MISTAKES', 'RULES']

_TRAIN, _TEST, _PREPARE = r'/train\.py', r'/test\.py', r'/prepare_data\.py'
_CPU = ('train_dataloader.num_workers=0', 'default_hooks.logger.interval=1')
_CPU_TEST = ('test_dataloader.num_workers=0', 'test_dataloader.batch_size=1')

_MASK_RCNN = (
    'model.backbone.arch=atto',
    'model.neck.in_channels=[40,80,160,320]',
    'model.neck.out_channels=16',
    'model.rpn_head.in_channels=16',
    'model.rpn_head.feat_channels=16',
    'model.roi_head.bbox_roi_extractor.out_channels=16',
    'model.roi_head.bbox_head.in_channels=16',
    'model.roi_head.bbox_head.fc_out_channels=32',
    'model.roi_head.mask_roi_extractor.out_channels=16',
    'model.roi_head.mask_head.num_convs=1',
    'model.roi_head.mask_head.in_channels=16',
    'model.roi_head.mask_head.conv_out_channels=16',
    'model.train_cfg.rpn_proposal.nms_pre=50',
    'model.train_cfg.rpn_proposal.max_per_img=20',
    'model.train_cfg.rcnn.sampler.num=16',
    'model.test_cfg.rpn.nms_pre=50',
    'model.test_cfg.rpn.max_per_img=20',
    'model.test_cfg.rcnn.score_thr=0.0',
    'model.test_cfg.rcnn.max_per_img=5',
)
_UPERNET = (
    'model.data_preprocessor.size=(64,64)',
    'model.backbone.img_size=(64,64)',
    'model.neck.in_channels=[192,192,192,192]',
    'model.neck.out_channels=16',
    'model.decode_head.in_channels=[16,16,16,16]',
    'model.decode_head.channels=8',
    'model.auxiliary_head.in_channels=16',
    'model.auxiliary_head.channels=8',
)


def _options(*options: str) -> list[str]:
    return ['--cfg-options', *options]


#: Page -> what leaves time to press Ctrl-C after the first checkpoint.
LONGER = {
    'detection': _options('train_cfg.max_epochs=6'),
    'segmentation': _options('train_cfg.max_iters=8', 'train_cfg.val_interval=8'),
    'classification': _options('train_cfg.max_epochs=6'),
}

#: A mistake that is no option of the command line -> what to run, and arguments for all of it.
MISTAKES: dict[str, tuple[str, list[str]]] = {
    'no network': ('TORCH_HOME=elsewhere {train}', []),
    "the baseline's checkpoint resumed with OLOR": (
        'python tools/train.py {baseline} --work-dir work_dirs/mistake\n{train} --resume {checkpoint}',
        [],
    ),
    '`--amp` without a GPU': ('{train} --amp', []),
    '`tools/test.py ... --tta`': ('python tools/test.py {main} {checkpoint} --tta', []),
    **{
        f'heads of {count} classes for 3': (
            'python tools/train.py my_detector.py --work-dir work_dirs/mistake',
            _options(*(f'model.roi_head.{kind}_head.num_classes={count}' for kind in ('bbox', 'mask'))),
        )
        for count in (2, 80)
    },
    'heads of 10 classes for 11, or no `ignore_index`': (
        'python tools/train.py camvid.py --work-dir work_dirs/mistake',
        _options('model.decode_head.num_classes=10'),
    ),
    'a head of 1 class for 2': (
        'python tools/train.py pets_vit.py --work-dir work_dirs/mistake',
        _options('model.head.num_classes=1', 'train_dataloader.dataset.indices=6'),
    ),
}

#: Page -> its rules.
RULES: dict[str, Rules] = {
    'detection': [
        (_PREPARE, ['--subset']),
        (f'{_TRAIN}|{_TEST}', _options(*_MASK_RCNN)),
        (
            _TRAIN,
            _options(
                *_CPU,
                'train_dataloader.dataset.pipeline.2.scale=(128,96)',
                'val_dataloader.dataset.pipeline.1.scale=(128,96)',
                'val_dataloader.num_workers=0',
                'train_cfg.max_epochs=1',
            ),
        ),
        (_TEST, _options(*_CPU_TEST, 'test_dataloader.dataset.pipeline.1.scale=(128,96)')),
        ('--resume', LONGER['detection']),
    ],
    'segmentation': [
        (_PREPARE, ['--subset']),
        (f'{_TRAIN}|{_TEST}', _options(*_UPERNET)),
        (f'({_TRAIN}|{_TEST})(?!.*their_vit)', _options('model.backbone.embed_dims=192', 'model.backbone.num_heads=3')),
        (r'their_vit', _options('model.backbone.arch=deit-tiny')),
        (
            _TRAIN,
            _options(
                *_CPU,
                'train_dataloader.dataset.pipeline.2.scale=(128,96)',
                'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
                'val_dataloader.dataset.pipeline.1.scale=(128,96)',
                'val_dataloader.num_workers=0',
                'train_cfg.max_iters=1',
                'train_cfg.val_interval=1',
                'default_hooks.checkpoint.interval=1',
            ),
        ),
        (_TEST, _options(*_CPU_TEST, 'test_dataloader.dataset.pipeline.1.scale=(128,96)')),
        ('--resume', LONGER['segmentation']),
    ],
    'classification': [
        (_PREPARE, ['--subset']),
        (r'/t\w+\.py \S*vit', _options('model.backbone.arch=deit-tiny', 'model.head.in_channels=192')),
        (r'/t\w+\.py \S*convnext', _options('model.backbone.arch=atto', 'model.head.in_channels=320')),
        (
            _TRAIN,
            _options(
                *_CPU,
                'train_dataloader.dataset.indices=2',
                'train_dataloader.batch_size=2',
                'val_dataloader.dataset.indices=2',
                'val_dataloader.num_workers=0',
                'train_cfg.max_epochs=1',
            ),
        ),
        (_TEST, _options(*_CPU_TEST, 'test_dataloader.dataset.indices=2')),
        ('--resume', LONGER['classification']),
    ],
}
