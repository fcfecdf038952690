"""``optim_wrapper.rollback``: the one dict that carries every setting, checked when it is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from olor_mm._options import check_known
from olor_mm.rollback import L2SP, Keep
from olor_mm.rollback._batches import FORMS
from olor_mm.rollback._pace import pace_of
from olor_mm.rollback.l2_sp import check_l2_sp
from olor_mm.rollback.level_schedule import LevelSchedule
from olor_mm.rollback.penalty import check_radii, layerwise_penalty
from olor_mm.rollback.rules import RULES

__all__ = ['LOADED', 'RollbackSettings']

#: ``roots='loaded'``: exactly the parameters that a checkpoint delivered.
LOADED = 'loaded'

_OPTION = 'optim_wrapper.rollback'


@dataclass
class RollbackSettings:
    """The settings of weight rollback, as they stand in a config under ``optim_wrapper.rollback``.

    Args:
        max_level: iota_1 in [0, 1], the level of the shallowest layer: the share of the distance to theta_0 that one
            step at the peak learning rate takes back; not multiplied by the learning rate itself. 0 switches the pull
            off. Defaults to 0; a config must give it unless it has ``l2_sp``, or the rule 'projection'.
        min_level: iota_2 in [0, max_level], the level of the deepest layer. Defaults to 0.
        power: gamma > 0, how fast the level falls with depth. Defaults to 1.
        index: 'layer' counts blocks in forward order, as the paper's text; 'tensor' counts parameter tensors, as the
            authors' code, with which the paper's Table 6 was tuned. Defaults to 'layer'.
        roots: Names of the sub-modules that are pre-trained, in forward order, such as ('backbone', 'neck'); '' is the
            whole model; 'loaded' takes exactly the parameters that a checkpoint delivered (``init_cfg`` or
            ``load_from``) with the right shape. Defaults to ('backbone',).
        layer_map: Regular expression on the parameter's name to layer index, where the order of layers is not found by
            itself or not the wanted one. Defaults to None.
        anchor: Where theta_0 comes from. None: the weights just before the first step, and the checkpoint on resume;
            a file: that file; 'init_cfg': the files that the model's ``init_cfg`` names; 'current': the weights as they
            are, also on resume from a checkpoint without theta_0. Defaults to None.
        inner: Config of the constructor that groups the parameters, such as
            ``dict(type='mmdet.LearningRateDecayOptimizerConstructor')``. Defaults to MMEngine's default one.
        form: 'foreach'; 'single_pass' for the optimizer's step and the pull in one read and write of each parameter,
            where that can be; or 'single_tensor' for a plain loop over tensors. Defaults to 'foreach'.
        anchor_dtype: 'param' keeps theta_0 in the dtype of the parameters; 'lossless' in half precision where every
            value of a tensor converts there and back to the same bits. Defaults to 'param'.
        anchor_memory: 'param' keeps theta_0 on the parameters' device; 'pinned' in pinned host memory, from where it is
            brought to the GPU during the backward pass; 'mapped' in a file that all processes of a machine share.
            Defaults to 'param'.
        anchor_saved: 'values' saves theta_0 in checkpoints; 'reference' the path and the SHA-256 of the pre-trained
            file where it is in that bit by bit. Defaults to 'values'.
        anchor_folder: Where 'mapped' writes what is in no file. Defaults to the user's cache.
        log: Whether the relative discrepancy is logged at the logger's interval, and the level where it has a schedule
            of its own. Defaults to True.
        rule: 'olor'; 'spd', selective projection decay, whose weight the level then is; or 'projection' onto balls
            around theta_0. Defaults to 'olor'.
        radius: With 'projection', the largest ||theta - theta_0||, in the unit of the weights; or two, of the
            shallowest and of the deepest layer, between which ``power`` leads. Defaults to None.
        ball: With 'projection', whether each 'tensor' has a ball or the tensors of a 'layer' share one. Defaults to
            'tensor'.
        level_schedule: What the level is multiplied by: 'lr', the learning rate's share of its peak; 'constant', 1;
            'warmup' or 'cosine' over the run; or a dict or a list of dicts with the options of
            :class:`~olor_mm.rollback.level_schedule.Ramp`, in iterations or epochs. Defaults to None, which is 'lr' for
            'olor' and 'constant' for 'spd'.
        l2_sp: L2-SP as a term of the gradient, dict(alpha=..., beta=...): alpha (theta - theta_0) for what is below the
            roots, beta theta for all else that is trained. Defaults to None.

    Raises:
        ValueError: If an option is unknown or its value cannot be right; the message names option, value and remedy.
    """

    max_level: float = 0.0
    min_level: float = 0.0
    power: float = 1.0
    index: str = 'layer'
    roots: Sequence[str] | str = ('backbone',)
    layer_map: Mapping[str, int] | None = None
    anchor: str | None = None
    inner: dict[str, Any] = field(default_factory=lambda: {'type': 'DefaultOptimWrapperConstructor'})
    form: str = 'foreach'
    anchor_dtype: str = 'param'
    anchor_memory: str = 'param'
    anchor_saved: str = 'values'
    anchor_folder: str | None = None
    log: bool = True
    rule: str = 'olor'
    radius: float | Sequence[float] | None = None
    ball: str = 'tensor'
    level_schedule: Any = None
    l2_sp: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_rule()
        try:
            layerwise_penalty(0, 1, self.max_level, self.min_level, self.power)
        except ValueError as error:
            raise ValueError(f'{_OPTION}.{error}') from None
        self._check_choice('index', self.index, ('layer', 'tensor'))
        self._check_choice('form', self.form, FORMS)
        try:
            self.keep, self.schedule, self.penalty  # noqa: B018
        except ValueError as error:
            raise ValueError(f'{_OPTION}.{error}') from None
        self._check_type('log', self.log, bool, 'True or False')
        self._check_type('anchor', self.anchor, (str, type(None)), "a file, 'init_cfg', 'current' or None")
        if self.anchor is not None and not self.anchor.strip():
            raise ValueError(f"{_OPTION}.anchor={self.anchor!r} must be a file, 'init_cfg', 'current' or None")
        self._check_type('layer_map', self.layer_map, (Mapping, type(None)), 'a dict of patterns to layer indices')
        if not isinstance(self.inner, Mapping) or 'type' not in self.inner:
            raise ValueError(f'{_OPTION}.inner={self.inner!r} must be the config of a constructor: dict(type=...)')
        if isinstance(self.roots, str) and self.roots != LOADED:
            self.roots = (self.roots,)
        names = [self.roots] if isinstance(self.roots, str) else self.roots
        if not isinstance(names, Sequence) or not names or not all(isinstance(root, str) for root in names):
            raise ValueError(f"{_OPTION}.roots={self.roots!r} must name sub-modules, as ('backbone',), or be 'loaded'")
        if LOADED in names and not isinstance(self.roots, str):
            raise ValueError(f"{_OPTION}.roots={self.roots!r}: 'loaded' is no sub-module; give roots='loaded' alone")

    def _check_rule(self) -> None:
        self._check_choice('rule', self.rule, RULES)
        self._check_choice('ball', self.ball, ('tensor', 'layer'))
        if self.rule == 'projection':
            if self.radius is None:
                raise ValueError(
                    f"{_OPTION}.radius is not set: rule='projection' needs the radius of the balls, as 1.0"
                )
            if self.max_level or self.min_level:
                raise ValueError(
                    f"{_OPTION}.max_level={self.max_level!r}: rule='projection' has a radius and no level: leave "
                    'max_level and min_level away'
                )
            check_radii(f'{_OPTION}.radius', self.radius)
        elif self.radius is not None or self.ball != 'tensor':
            option = 'radius' if self.radius is not None else 'ball'
            raise ValueError(
                f"{_OPTION}.{option}={getattr(self, option)!r} is for rule='projection', but rule={self.rule!r}: leave "
                'it away, or change the rule'
            )

    @property
    def schedule(self) -> LevelSchedule | None:
        """What the level is multiplied by; None is the learning rate's share of its peak."""
        return pace_of(self.rule, self.level_schedule)

    @property
    def penalty(self) -> L2SP | None:
        """L2-SP, added by the optimizer wrapper before gradients are clipped; None where it is off."""
        if isinstance(self.l2_sp, Mapping) and 'by_hand' in self.l2_sp:
            raise ValueError(
                f'l2_sp.by_hand={self.l2_sp["by_hand"]!r} is not for a config: the optimizer wrapper adds the term in '
                'front of clip_grad'
            )
        found = check_l2_sp(self.l2_sp)
        return None if found is None else L2SP(found.alpha, found.beta, by_hand=True)

    @property
    def is_on(self) -> bool:
        """Whether anything needs theta_0."""
        return self.max_level > 0 or self.rule == 'projection' or self.penalty is not None

    @property
    def keep(self) -> Keep:
        """How theta_0 is kept."""
        return Keep(self.anchor_dtype, self.anchor_memory, self.anchor_saved, self.anchor_folder)

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any] | None) -> 'RollbackSettings':
        """Settings from the dict of a config; ValueError for unknown keys and a missing ``max_level``."""
        if not isinstance(cfg, Mapping):
            raise ValueError(f'{_OPTION}={cfg!r} must be a dict with max_level, such as dict(max_level=0.01, power=2)')
        check_known(_OPTION, cfg, [f.name for f in fields(cls)])
        if 'max_level' not in cfg and not cfg.get('l2_sp') and cfg.get('rule') != 'projection':
            raise ValueError(
                f'{_OPTION}.max_level is not set: give the level of the shallowest layer in [0, 1], such as 0.01; the '
                'paper searches 1e-4 to 1'
            )
        options: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in cfg.items()}
        return cls(**options)

    @staticmethod
    def _check_choice(option: str, value: Any, choices: Sequence[str]) -> None:
        if value not in choices:
            raise ValueError(f'{_OPTION}.{option}={value!r} is not known: choose one of {", ".join(choices)}')

    @staticmethod
    def _check_type(option: str, value: Any, types: Any, wanted: str) -> None:
        if not isinstance(value, types):
            raise ValueError(f'{_OPTION}.{option}={value!r} must be {wanted}')
