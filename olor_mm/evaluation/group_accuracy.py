"""The accuracy on groups of images, such as the domains of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from olor_mm.registry import METRICS

__all__ = ['GroupAccuracy']


@METRICS.register_module()
class GroupAccuracy(BaseMetric):  # type: ignore[misc]
    """Top-1 on each of some groups of images, which what the data set says of an image tells apart.

    What says it must be in the samples: ``PackInputs(meta_keys=(..., 'domain'))``.

    Args:
        groups: Name of a group to the values that belong to it, such as ``dict(fold_1=['cartoon', 'photo'])``.
        key: Of what is said of an image. Defaults to 'domain', as the data sets of several domains here have it.
        collect_device: Where the ranks' results are gathered, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix: In front of ``<group>/top1``. Defaults to None: nothing.

    Raises:
        ValueError: If a value is in two groups; while it is used, if an image has none of the values.

    Example:
        >>> val_evaluator = dict(type='olor_mm.GroupAccuracy', groups=dict(seen=['photo'], unseen=['sketch']))
    """

    default_prefix = ''

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        key: str = 'domain',
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.key, self.names = key, list(groups)
        self._group = {value: name for name, values in groups.items() for value in values}
        if not groups or len(self._group) != sum(len(values) for values in groups.values()):
            raise ValueError(f'GroupAccuracy.groups={dict(groups)!r:.200}: name at least one, and each value once')

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take the predictions for a batch: ``pred_label`` and ``gt_label`` of each."""
        for sample in data_samples:
            value = sample.get(self.key)
            if value not in self._group:
                raise ValueError(
                    f'an image has {self.key}={value!r}, which is in no group of GroupAccuracy: name it in groups, or '
                    f'give PackInputs meta_keys with {self.key!r} in it'
                )
            right = int(torch.as_tensor(sample['pred_label']).item()) == int(torch.as_tensor(sample['gt_label']).item())
            self.results.append((self._group[value], right))

    def compute_metrics(self, results: list[tuple[str, bool]]) -> dict[str, float]:
        """%, of the groups that there were images of."""
        found: dict[str, float] = {}
        for name in self.names:
            right = [correct for group, correct in results if group == name]
            if right:
                found[f'{name}/top1'] = 100.0 * sum(right) / len(right)
        return found
