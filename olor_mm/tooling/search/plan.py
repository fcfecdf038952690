"""What is searched: a config, its options, the points and their seeds; and the run of each of them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...engine.replacing import PART, put_in_place
from ...registry import type_name
from .. import launch
from ..errors import InputError
from ..pretrained import check_vit_names
from ..runs import Run
from .best import final_config
from .metric import Metric
from .options import passed_on
from .space import Point, Space

__all__ = ['Plan', 'begin', 'warnings_of']

FILE = 'search.json'
_CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'
_ROLLBACK = 'optim_wrapper.rollback'
#: Settings that the search sets, and the option that says to what.
_SEARCHED = {
    f'{_ROLLBACK}.max_level': '--levels',
    f'{_ROLLBACK}.power': '--powers',
    f'{_ROLLBACK}.min_level': '--min-level',
    'randomness.seed': '--seeds',
}


@dataclass(frozen=True)
class Plan:
    """A search.

    Args:
        root: Its work dir.
        config: The user's config.
        options: What every run gets besides, as tools/train.py takes it.
        pairs: ``--cfg-options`` of every run.
        cfg: The config with all of these, without a point.
        space: Where to look.
        seeds: Of each point.
        metric: What to compare.
        which: 'best' or 'last' validation of a run.
    """

    root: Path
    config: Path
    options: tuple[str, ...]
    pairs: tuple[str, ...]
    cfg: Config = field(repr=False, compare=False)
    space: Space
    seeds: tuple[int, ...]
    metric: Metric
    which: str

    @classmethod
    def of(cls, args: argparse.Namespace) -> Plan:
        """From the command line.

        Raises:
            InputError: If the config, or an option, is the user's to mend.
        """
        space = Space.make(args.grid, args.levels, args.powers, args.min_level)
        config, given = Path(args.config).expanduser().absolute(), tuple(getattr(args, 'cfg_pairs', ()))
        _refuse_searched(given)
        options = tuple(passed_on(args))
        cfg = final_config(_argv(config, options, given))
        check_config(cfg)
        seeds = tuple(dict.fromkeys(args.seeds or [_seed_of(cfg)]))
        if any(seed < 0 for seed in seeds):
            raise InputError(f'--seeds {min(seeds)}: a seed is a whole number of 0 or more')
        return cls(
            root=Path(args.work_dir or Path('work_dirs', f'{config.stem}_search')),
            config=config,
            options=options,
            pairs=(*given, *_constructor_pairs(cfg)),
            cfg=cfg,
            space=space,
            seeds=seeds,
            metric=Metric.of(cfg, args.metric, args.mode),
            which=args.which,
        )

    def argv(self, point: Point, seed: int) -> list[str]:
        """The arguments of tools/train.py for a point."""
        settings = {**self.space.settings(point), 'randomness.seed': seed}
        return _argv(self.config, self.options, (*self.pairs, *(f'{key}={value!r}' for key, value in settings.items())))

    def run(self, point: Point, seed: int, name: str | None = None) -> Run:
        """The run of a point.

        Args:
            point: max_level and power.
            seed: ``randomness.seed``.
            name: Of the trial. Defaults to None: the name of the point.
        """
        name = f'{name or point.name}_seed-{seed}'
        return Run(name, self.argv(point, seed), self.root / 'runs' / name)

    def check(self) -> None:
        """Everything that tools/train.py would refuse before it trains, said once and before the first run.

        Raises:
            InputError: If it would.
        """
        point = Point(self.space.levels[-1], self.space.powers[-1])
        cfg = final_config(self.argv(point, self.seeds[0]))
        launch.check_names(cfg)
        launch._check_rollback(cfg)
        cfg.work_dir, cfg.launcher = str(self.root), 'none'
        launch._check(cfg, 'train', 'val')
        check_vit_names(cfg)


def check_config(cfg: Config) -> None:
    """See that a config can be searched.

    Raises:
        InputError: If it cannot.
    """
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, Mapping) or 'optimizer' not in wrapper:
        raise InputError(
            'optim_wrapper has no optimizer, whose steps are to be followed by a pull',
            'a config with several optimizers (OptimWrapperDict) cannot be searched: set the levels of each by hand',
        )
    if any(cfg.get(key) is None for key in ('val_dataloader', 'val_evaluator', 'val_cfg')):
        raise InputError(
            'the search chooses on validation data, and the config has none',
            'set val_dataloader, val_evaluator and val_cfg',
        )
    rule = (wrapper.get('rollback') or {}).get('rule', 'olor')
    if rule == 'projection':
        raise InputError(
            f'{_ROLLBACK}.rule={rule!r} has a radius, and neither max_level nor power',
            "search with rule='olor' or 'spd': --cfg-options optim_wrapper.rollback.rule=olor",
        )


def warnings_of(plan: Plan) -> list[str]:
    """What makes the figures of a search say less than they seem to."""
    cfg, said = plan.cfg, []
    data = {key: _data(cfg.get(f'{key}_dataloader')) for key in ('train', 'val', 'test')}
    if data['val'] is not None and data['val'] == data['test']:
        said.append(
            'val_dataloader and test_dataloader read the same images: what is chosen on them flatters the test. Hold '
            'some out of the training instead: docs/search.md shows how'
        )
    if data['val'] is not None and data['val'] == data['train']:
        said.append(
            'val_dataloader and train_dataloader read the same images: what is chosen on them is what learns them by '
            'heart, which is the opposite of what OLOR is for'
        )
    rollback = cfg.optim_wrapper.get('rollback') or {}
    if rollback.get('min_level', plan.space.min_level) != plan.space.min_level:
        said.append(
            f'{_ROLLBACK}.min_level={rollback["min_level"]!r} of the config is set to {plan.space.min_level:g}: '
            '--min-level says another'
        )
    if rollback.get('l2_sp') is not None:
        said.append(f'{_ROLLBACK}.l2_sp is set: level 0 is not plain fine-tuning here, but L2-SP alone')
    return said


def begin(plan: Plan, about: Mapping[str, Any]) -> None:
    """Write down a new search, or see that it is the one that goes on.

    Args:
        plan: The search.
        about: What must stay the same: the sampler and the like.

    Raises:
        InputError: If the work dir holds another search.
    """
    file = plan.root / FILE
    said = {'config': str(plan.config), 'min_level': plan.space.min_level, **about}
    if file.is_file():
        try:
            saved = json.loads(file.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise InputError(f'{file} cannot be read: {error}', 'start anew with another --work-dir') from error
        for key, value in said.items():
            if saved.get(key) != value:
                raise InputError(
                    f'{plan.root} holds a search with {key}={saved.get(key)!r}, and this one has {value!r}',
                    'go on with that one, or take another --work-dir',
                )
        return
    plan.root.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'.{file.name}.{os.getpid()}{PART}')
    part.write_text(json.dumps(said, indent=2) + '\n', encoding='utf-8')
    put_in_place(part, file)


def _argv(config: Path, options: Sequence[str], pairs: Sequence[str]) -> list[str]:
    return [str(config), *options, *(['--cfg-options', *pairs] if pairs else [])]


def _refuse_searched(pairs: Sequence[str]) -> None:
    for pair in pairs:
        key, _, value = pair.partition('=')
        if key in _SEARCHED:
            raise InputError(
                f'--cfg-options {pair}: the search sets {key} itself', f'say what to try: {_SEARCHED[key]} {value}'
            )


def _seed_of(cfg: Config) -> int:
    seed = (cfg.get('randomness') or {}).get('seed')
    return seed if isinstance(seed, int) else 0


def _constructor_pairs(cfg: Config) -> list[str]:
    """What gives a config OLOR that has none; the constructor that it has goes inside."""
    own = cfg.optim_wrapper.get('constructor')
    if type_name(own) == type_name(_CONSTRUCTOR):
        return []
    inner = [] if own is None else [f'{_ROLLBACK}.inner.type={own if isinstance(own, str) else type_name(own)}']
    return [f'optim_wrapper.constructor={_CONSTRUCTOR}', *inner]


def _data(loader: Any) -> Any:
    """What images a loader reads: its data set, without what is done to them."""
    return None if loader is None else _bare(loader.get('dataset'))


def _bare(node: Any) -> Any:
    if isinstance(node, Mapping):
        skipped = ('pipeline', 'test_mode', 'filter_cfg', 'lazy_init', 'serialize_data', 'max_refetch')
        return {key: _bare(value) for key, value in node.items() if key not in skipped}
    if isinstance(node, (list, tuple)):
        return [_bare(item) for item in node]
    return node
