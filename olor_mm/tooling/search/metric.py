"""What a search compares: the name of a validation's metric, and whether more of it is better."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.hooks import CheckpointHook

from ..errors import InputError

__all__ = ['Metric']


@dataclass(frozen=True)
class Metric:
    """A metric of the validation.

    Args:
        name: As the log has it, such as ``'accuracy/top1'``; None is the first one of a validation, as with MMEngine's
            ``save_best='auto'``.
        greater: Whether more is better; None where that is not known yet.
        keys: MMEngine's ``greater_keys`` and ``less_keys`` of the config's checkpoint hook.
    """

    name: str | None
    greater: bool | None
    keys: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, cfg: Mapping[str, Any], name: str | None = None, mode: str | None = None) -> Metric:
        """That of a config: what its checkpoint hook calls the best, unless it is named.

        Args:
            cfg: The config of a run.
            name: The metric. Defaults to None: ``default_hooks.checkpoint.save_best``.
            mode: 'max' or 'min'. Defaults to None: the hook's ``rule``, or what MMEngine infers from the name.

        Raises:
            InputError: If it cannot be inferred.
        """
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        bests, rules = _listed(hook.get('save_best')), _listed(hook.get('rule'))
        if name is None and bests and bests[0] != 'auto':
            name = bests[0]
        if mode is None and rules and (name in bests or bests == ['auto']):
            rule = rules[bests.index(name) if len(rules) > 1 and name in bests else 0]
            mode = {'greater': 'max', 'less': 'min'}.get(str(rule))
        keys = tuple((key, hook[key]) for key in ('greater_keys', 'less_keys') if hook.get(key))
        metric = cls(name, None if mode is None else mode == 'max', keys)
        return metric if name is None else metric.resolved([name])

    def resolved(self, names: Sequence[str]) -> Metric:
        """This metric, its name among those of a validation and its direction known.

        Args:
            names: What a validation gave, in its order.

        Raises:
            InputError: If it is not among them, or its direction cannot be inferred.
        """
        if not names:
            raise InputError(
                'a validation gave no metric', 'the search chooses by one: set val_evaluator, or another with --metric'
            )
        name = names[0] if self.name is None else self.name
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise InputError(
                f'--metric {name} is not among the metrics of the validation',
                f'these are: {", ".join(names)}',
                *([f'did you mean: --metric {near[0]}'] if near else []),
            )
        return Metric(name, self._infer(name) if self.greater is None else self.greater, self.keys)

    def _infer(self, name: str) -> bool:
        try:
            rules = CheckpointHook(save_best=name, **dict(self.keys)).rules
        except ValueError:
            raise InputError(
                f'it cannot be told from the name of the metric {name!r} whether more is better',
                'say it: --mode max or --mode min; or correct the name, which the first validation is compared with',
            ) from None
        return bool(rules[0] == 'greater')

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.greater else -1

    def better(self, one: float, other: float) -> bool:
        """Whether one value is better than the other."""
        return self.sign * (one - other) > 0


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
