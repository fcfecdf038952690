"""UpstreamHook: how much of the pre-training is still known, measured during fine-tuning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from .._options import check_known
from ..engine.replacing import PART, put_in_place
from ..registry import HOOKS, type_name
from ._checks import check_labels, is_count
from .features import built, check_loader, evaluating, extract_features, gathered, unwrapped
from .heads import OriginalHead, head_weights, original_head, read_file
from .hooks import AFTER_EMA, refuse_shards
from .knn import KNNBank, accuracies, check_ks

__all__ = ['UpstreamHook']

#: Of a run: the original head, so that a resumed run does without the pre-trained file.
HEAD_FILE = 'upstream_head.pth'
#: In the message hub: what was measured before training.
START = 'upstream_start'
_PREFIX = 'upstream/'
_LABELS = 'labels of UpstreamHook.dataloader'
_WHAT = 'UpstreamHook'


@HOOKS.register_module()
class UpstreamHook(Hook):
    """Measures a model on the data of its pre-training whenever it is validated.

    'upstream/head/top1' and 'top5' (%) are the accuracy of the head that the model was pre-trained with on the
    fine-tuned backbone, 'upstream/knn/top1/k=20' and so on that of its features alone. They stand beside the metrics of
    the validation: in the log, in all visualizer backends, and for ``save_best`` and early stopping. They are measured
    with the averaged weights where the validation is (EMAHook). Training is the same to the bit as without the hook.

    Args:
        dataloader: Config of a loader of upstream images with labels, under the transforms of a test.
        outputs: The output of the original head for each label of these images. Defaults to None: the label itself.
        head: Config of the original head, if it is no linear layer; False for no such accuracy. Defaults to None: as
            the file has it.
        checkpoint: The pre-trained file that has the original head. Defaults to None: what the run starts from, by
            ``load_from`` or ``init_cfg``. The head is kept in the work dir, and a resumed run reads it there.
        knn: ``bank``, the config of a loader of upstream training images; ``ks``, default (20,); ``temperature``,
            default 0.07; ``num_classes``, default what the bank has. Defaults to None: no kNN.
        interval: Measure at every so many validations, and at the last. Defaults to 1.
        start: Whether to measure before training too, at step 0 of the curves. Defaults to True.
        unknown: No further option; one that does not exist is refused.

    Raises:
        ValueError: If an option cannot be right.

    Example:
        >>> custom_hooks = [dict(type='olor_mm.UpstreamHook', dataloader=imagenet_val, knn=dict(bank=imagenet_train))]
        >>> default_hooks = dict(checkpoint=dict(save_best=['accuracy/top1', 'upstream/head/top1']))
    """

    priority = AFTER_EMA  # type: ignore[assignment]

    def __init__(
        self,
        dataloader: Any,
        outputs: Sequence[int] | None = None,
        head: Any = None,
        checkpoint: str | None = None,
        knn: Any = None,
        interval: int = 1,
        start: bool = True,
        **unknown: Any,
    ) -> None:
        check_known('UpstreamHook', unknown, list(inspect.signature(UpstreamHook).parameters)[:-1])
        if not isinstance(dataloader, Mapping):
            raise ValueError(f'UpstreamHook.dataloader={dataloader!r:.60} must be the config of a data loader')
        if not is_count(interval):
            raise ValueError(f'UpstreamHook.interval={interval!r} must be a whole number of 1 or more')
        if head is not None and head is not False and not isinstance(head, Mapping):
            raise ValueError(f'UpstreamHook.head={head!r:.60} must be the config of a head, False or None')
        if outputs is not None and (not outputs or not all(is_count(each, 0) for each in outputs)):
            raise ValueError(
                f"UpstreamHook.outputs={outputs!r:.60} must be the head's output for each label, from 0 on"
            )
        self.knn = None if knn is None else _knn_options(knn)
        if head is False and self.knn is None:
            raise ValueError('UpstreamHook.head=False and no knn: nothing is left to measure; set knn=dict(bank=...)')
        self.dataloader, self.outputs, self.checkpoint = dataloader, outputs, checkpoint
        self.interval, self.start = interval, start
        self.head_cfg: Any = head
        self.head: OriginalHead | None = None
        self._loaders: dict[str, Any] = {}
        self._found: dict[str, float] = {}

    # ---------------------------------------------------------------- what MMEngine calls

    def before_train(self, runner: Runner) -> None:
        """Read what is needed, and measure the model that training starts from.

        Raises:
            ValueError: If there is no head, or it does not fit the labels, or ``save_best`` cannot be served.
        """
        if runner._val_loop is None:
            raise ValueError(
                'UpstreamHook measures with each validation, and there is none: set val_dataloader, val_evaluator and '
                'val_cfg, or take the hook out of custom_hooks'
            )
        for hook in runner.hooks:
            keys = [key for key in getattr(hook, 'key_indicators', None) or () if str(key).startswith(_PREFIX)]
            if keys and self.interval > 1:
                raise ValueError(
                    f'UpstreamHook.interval={self.interval}, but {keys[0]!r} of save_best is needed at each '
                    'validation: set interval=1'
                )
        self._prepare(runner, training=True)
        if not self.start or START in runner.message_hub.runtime_info or runner.iter:
            return
        found = self._measure(runner)
        runner.message_hub.update_info(START, found)
        runner.visualizer.add_scalars(found, step=0)
        runner.logger.info('before training: ' + ', '.join(f'{name}: {value:.2f}' for name, value in found.items()))

    def before_val_epoch(self, runner: Runner) -> None:
        """Measure, with the weights that are validated."""
        self._found = {}
        if self._due(runner):
            self._prepare(runner, training=False)
            self._found = self._measure(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the figures beside those of the validation."""
        for name, value in self._found.items():
            if metrics is not None:
                metrics[name] = value
            runner.message_hub.update_scalar(f'val/{name}', value)

    # ---------------------------------------------------------------- the figures

    def _due(self, runner: Runner) -> bool:
        loop: Any = runner._train_loop
        if self.interval == 1 or loop is None or isinstance(loop, dict):
            return True
        by_epoch = 'max_epochs' in runner.cfg.train_cfg
        done, end = (runner.epoch, runner.max_epochs) if by_epoch else (runner.iter, runner.max_iters)
        return done >= end or (done // loop.val_interval) % self.interval == 0

    def _measure(self, runner: Runner) -> dict[str, float]:
        model = unwrapped(runner.model)
        features, labels = extract_features(model, self._loaders['queries'], dtype=torch.float32, what=_WHAT)
        # Each rank scores its share.
        mine = slice(get_rank(), None, get_world_size())
        found: dict[str, float] = {}
        if self.head is not None:
            ranks = gathered([self.head.ranks(features[mine], self._wanted(labels[mine]))], len(labels))
            found.update({f'{_PREFIX}head/top{top}': 100 * float((ranks < top).double().mean()) for top in (1, 5)})
        if self.knn is not None:
            ranks = gathered([self._knn_ranks(model, features[mine], labels[mine])], len(labels))
            found.update({f'{_PREFIX}knn/{name}': value for name, value in accuracies(ranks, self.knn['ks']).items()})
        return found

    def _wanted(self, labels: Tensor) -> Tensor:
        if self.outputs is None:
            return labels
        return torch.tensor(list(self.outputs))[check_labels(_LABELS, labels, len(labels), len(self.outputs))]

    def _knn_ranks(self, model: Any, queries: Tensor, labels: Tensor) -> Tensor:
        options: Any = self.knn
        features, known = extract_features(model, self._loaders['bank'], dtype=torch.float32, what=_WHAT)
        held = KNNBank(options['num_classes'] or int(known.max()) + 1)
        held.add(features, known)
        device = next(model.parameters()).device
        held.to(device)
        return held.ranks(queries.to(device), labels, options['ks'], options['temperature'])

    # ---------------------------------------------------------------- what is read once

    def _prepare(self, runner: Runner, training: bool) -> None:
        if self._loaders:
            return
        refuse_shards('UpstreamHook', runner.model)
        with evaluating():
            loaders = {'queries': built(self.dataloader)}
            if self.knn is not None:
                loaders['bank'] = built(self.knn['bank'])
            for loader in loaders.values():
                check_loader(loader)
            if self.head_cfg is not False:
                self.head = self._original_head(runner, training)
                self._check_labels(loaders['queries'].dataset, self.head)
        self._loaders = loaders

    def _original_head(self, runner: Runner, training: bool) -> OriginalHead:
        file = Path(runner.work_dir) / HEAD_FILE
        kept = file.is_file() and not (training and not runner._resume)
        source = str(file) if kept else self.checkpoint or (_started_from(runner.cfg) if training else None)
        if source is None:
            raise ValueError(
                'UpstreamHook: which file has the original head is not known, for load_from and init_cfg name none, or '
                'several: set checkpoint=FILE, or head=False for kNN alone'
            )
        weights = head_weights(read_file(source), self.head_cfg)
        head = original_head(weights, self.head_cfg)
        runner.logger.info(
            f'UpstreamHook: the original head, {head.num_classes} classes from {head.in_features} features: {source}'
        )
        barrier()
        if training and not kept and is_main_process():
            _keep(weights, file)
        return head

    def _check_labels(self, dataset: Any, head: OriginalHead) -> None:
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        if self.outputs is None and names and len(names) != head.num_classes:
            raise ValueError(
                f'UpstreamHook.dataloader has {len(names)} classes, the original head {head.num_classes}: set outputs, '
                "the head's output for each label"
            )
        if self.outputs is not None and max(self.outputs) >= head.num_classes:
            raise ValueError(
                f'UpstreamHook.outputs has {max(self.outputs)}, but the original head has {head.num_classes} outputs, '
                'from 0 on'
            )


def _knn_options(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not isinstance(given.get('bank'), Mapping):
        raise ValueError(f'UpstreamHook.knn={given!r:.60} must be a dict with bank, the config of a data loader')
    check_known('UpstreamHook.knn', given, ('bank', 'ks', 'temperature', 'num_classes'))
    options = {'ks': (20,), 'temperature': 0.07, 'num_classes': None, **given}
    return {**options, 'ks': check_ks(options['ks'])}


def _started_from(cfg: Mapping[str, Any]) -> str | None:
    """The file that a run of a config starts from; None where there is none, or several."""
    if cfg.get('load_from') and not cfg.get('resume'):
        return str(cfg['load_from'])
    files = set(_named(cfg.get('model')))
    return files.pop() if len(files) == 1 else None


def _named(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if type_name(node.get('type')) == 'Pretrained' and isinstance(node.get('checkpoint'), str):
            yield node['checkpoint']
        for value in node.values():
            yield from _named(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _named(value)


def _keep(weights: Mapping[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'.{file.name}{PART}')
    torch.save({'state_dict': dict(weights)}, part)
    put_in_place(part, file)
