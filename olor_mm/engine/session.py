"""One run's rollback: from the settings and the model to levels, theta_0, the report and the checks."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from olor_mm.layers import LayerTable, assign_layers, canonical_name
from olor_mm.rollback import AnchorFileError, MissingAnchorError, Rollback
from olor_mm.rollback.anchor import has_anchor
from olor_mm.rollback.penalty import layerwise_levels, layerwise_radii

from . import loading, monitor, saved
from .added import added_by_methods, pulled_back_by_methods, with_layers_of
from .agreement import Agreement
from .checks import check_effect, check_first_step, trains_other_tensors
from .ledger import LoadLedger
from .loaded import roots_of_loaded
from .messages import forward_messages
from .origin import NO_FILE, left_alone, no_theta_0, told_origin, warn_of_random_theta_0
from .pacing import RunPace
from .report import format_report
from .settings import LOADED, RollbackSettings
from .sharding import Shards, refuse_keep, refuse_rule, refuse_sharded
from .sources import anchors_of_file, anchors_of_init_cfg, delivered_by_init_cfg, pretrained_files

__all__ = ['RollbackSession']


class RollbackSession:
    """Joins an optimizer wrapper to :class:`~olor_mm.rollback.Rollback` over the life of a run.

    Built with the wrapper, while the weights may still be random; started when they are known to be the pre-trained
    ones, or the resumed ones.

    Args:
        settings: ``optim_wrapper.rollback``.
        model: The model, wrapped or not.

    Raises:
        ValueError: If a root does not exist, holds no parameter, or none that is trained.
    """

    def __init__(self, settings: RollbackSettings, model: nn.Module) -> None:
        refuse_sharded(model)
        self.settings = settings
        self.model = model
        self.shards: Shards | None = None
        self.names: dict[str, Tensor] = {canonical_name(name): p for name, p in model.named_parameters()}
        # With what hooks unfreeze later, which is trained while the wrapper is built.
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._added = added_by_methods(model)
        #: Names of what a method added and wants to be pulled back to where it starts.
        self._returning = pulled_back_by_methods(model)
        self.ledger = LoadLedger(model)
        self.agreement = Agreement(model)
        if not settings.is_on:
            self.ledger.close()
        self.layers: LayerTable | None = None if settings.roots == LOADED else self._assign(settings.roots)
        self.rollback: Rollback | None = None
        #: The level's own schedule over the run; None where it goes with the learning rate, or is constant.
        schedule = settings.schedule
        self.pace = None if schedule is None or schedule.is_constant else RunPace(schedule)
        #: Parameter to lambda, or radius, 0 included, of everything below the roots that the optimizer trains.
        self.levels: dict[Tensor, float] = {}
        self._resumed = False
        # FlexibleRunner's strategies initialise the model, init_cfg included, before the wrapper is built: unseen here.
        self._initialised_before = any(getattr(module, 'is_init', False) for module in model.modules())
        self._saved: Mapping[str, Any] | None = None
        self._saved_names: list[str] | None = None
        self._started_at: int | None = None
        self.verified = False

    def _assign(self, roots: Iterable[str]) -> LayerTable:
        try:
            settings = self.settings
            layers = assign_layers(self.model, tuple(roots), settings.index, settings.layer_map, self._added)
            return with_layers_of(layers, self._returning)
        except ValueError as error:
            text = str(error)
            if text.startswith(('index', 'layer_map', 'roots')):
                text = f'optim_wrapper.rollback.{text}'
            raise ValueError(text) from None

    def _covered(self) -> dict[str, Tensor]:
        """Canonical name to parameter, of everything that has a layer index."""
        return {k: p for k, p in self.names.items() if self.layers is not None and k in self.layers.index}

    # ---------------------------------------------------------------- building

    def adopt(self, shards: Shards, ledger: LoadLedger) -> None:
        """Go on with the shards of the model; ``ledger`` has watched it since it was built."""
        refuse_keep(self.settings.keep)
        refuse_rule(self.settings.rule)
        self.shards = shards
        self.ledger.adopt(ledger)
        self._initialised_before = False
        if self.rollback is not None:
            self.rollback.shards = shards.numbers

    def attach(self, optimizer: Optimizer) -> None:
        """Join the optimizer; with ``roots='loaded'`` only once it is known what was loaded."""
        if self.layers is None or not self.settings.is_on:
            return
        settings, covered = self.settings, self._covered()
        owned = {p for group in optimizer.param_groups for p in group['params']}
        trained = {k: p for k, p in covered.items() if p in owned and (p.is_floating_point() or p.is_complex())}
        if not any(p.requires_grad for p in trained.values()):
            raise ValueError(
                f'optim_wrapper.rollback.roots={settings.roots!r}: all {len(covered)} parameters there are frozen or '
                'not given to the optimizer, so there is nothing to pull back; unfreeze them (frozen_stages, '
                'requires_grad, model.method), name other roots, or take the rollback out of the config'
            )
        self.levels = self._amounts(trained)
        check_effect(self.model, optimizer, covered, self.levels, settings)
        names = {p: name for name, p in covered.items()}
        anchor = 'current' if settings.anchor == 'current' else None
        forward_messages()
        layers = {p: self.layers.index[name] for name, p in trained.items()}
        self.rollback = Rollback(
            optimizer,
            self.levels,
            anchor=anchor,
            names=names,
            form=settings.form,
            keep=settings.keep,
            rule=settings.rule,
            balls=layers if settings.ball == 'layer' else None,
            level_schedule=settings.level_schedule if self.pace is None else self.pace,
            l2_sp=settings.penalty,
        )
        if self.pace is not None:
            self.rollback.pace.clock = self.pace.now
        if self.rollback.keeper is not None:
            self.rollback.keeper.origins.read = loading.read_weights
        if self.shards is not None:
            self.rollback.shards = self.shards.numbers

    def _amounts(self, trained: Mapping[str, Tensor]) -> dict[Tensor, float]:
        """What the rule takes for each parameter: a level, or a radius."""
        settings, layers = self.settings, self.layers
        if layers is None:
            return {}
        table = (trained.items(), layers.index, layers.num_layers)
        if settings.radius is not None:
            return layerwise_radii(*table, settings.radius, settings.power)
        return layerwise_levels(*table, settings.max_level, settings.min_level, settings.power)

    def follow(self, optimizer: Optimizer) -> None:
        """Move to another optimizer, which a strategy has put in place of the one that the wrapper was built with.

        Raises:
            RuntimeError: If it trains other tensors, such as flattened shards.
        """
        if self.rollback is None or optimizer is self.rollback.given_optimizer:
            return
        owned = {p for group in optimizer.param_groups for p in group['params']}
        if not set(self.rollback.levels) <= owned:
            raise trains_other_tensors(optimizer)
        self.rollback.detach()
        self.attach(optimizer)
        self._started_at = None

    def follow_model(self, model: nn.Module) -> None:
        """Go on with the same model in another wrapper."""
        self.model = model
        self.agreement.follow(model)

    # ---------------------------------------------------------------- loading and saving

    def state_dict(self) -> dict[str, Any]:
        """What is saved beside the optimizer's state: what is pulled back, and how. theta_0 is in that state."""
        levels = self.rollback.given_levels if self.rollback is not None else {}
        keeper = self.rollback.keeper if self.rollback is not None else None
        files = keeper.origins.digests() if keeper is not None else {}
        return saved.describe(self.settings, {name: levels[p] for name, p in self.names.items() if p in levels}, files)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Note that the optimizer's state came from a checkpoint; ``state`` is None where that had no rollback."""
        self._resumed = True
        self._started_at = None
        self._saved = state
        self._saved_names = list(state['names']) if state else None

    def check_model(self, optimizer: Optimizer, state: Mapping[str, Any] | None = None) -> None:
        """See that what was loaded to go on from is of this model, before the optimizer's state is loaded.

        Args:
            optimizer: The optimizer in use.
            state: The state to be loaded into it, where there is one. Defaults to None.

        Raises:
            WrongCheckpointError: If it is not.
        """
        # Later no loading is watched any more, and what is loaded then is the user's own, such as a copy in memory.
        if self.settings.is_on and not self.verified:
            saved.check_model(self.names, self.model, self.ledger, optimizer)
            saved.check_groups(state or {}, optimizer)

    # ---------------------------------------------------------------- starting

    def start(self, optimizer: Optimizer, resumed: bool = False) -> None:
        """Take theta_0 and say so; again if something was loaded since the last time.

        Args:
            optimizer: The optimizer in use.
            resumed: Whether the run goes on from a checkpoint. Defaults to False.

        Raises:
            MissingAnchorError: If the run goes on from a checkpoint that has no theta_0, and ``anchor`` is not set.
            WrongCheckpointError: If it goes on from that of another model.
            ValueError: If ``roots='loaded'`` and nothing was loaded, or the file of ``anchor`` does not fit.
        """
        if resumed and not self._resumed:
            # The checkpoint has no optimizer's state: load_state_dict was not called.
            self.check_model(optimizer)
        self._resumed = self._resumed or resumed
        if self._started_at == self.ledger.version:
            return
        if not self.settings.is_on:
            print_log('Weight rollback (OLOR) is off: optim_wrapper.rollback.max_level=0', logger='current')
            if self._saved is not None:
                saved.warn(saved.changes(self._saved, self.state_dict()))
                self._saved = None
            self._started_at = self.ledger.version
            return
        if self.settings.roots == LOADED:
            self._attach_to_loaded(optimizer)
        rollback = self.rollback
        if rollback is None:
            return
        held = self._take_theta_0(rollback)
        self._started_at = self.ledger.version
        self._tell(held)
        if self.settings.log:
            monitor.install(self.measure)
            if self.pace is not None:
                monitor.install_level(self.level)

    def _take_theta_0(self, rollback: Rollback) -> int:
        """Returns of how many tensors the optimizer's state had it, on all ranks."""
        # An empty shard has no state, and needs none.
        rolled = [p for p in rollback.levels if p.numel()]
        held = sum(has_anchor(rollback.optimizer.state.get(p)) for p in rolled)
        lacking = held < len(rolled)
        if rollback.reduce is not None:
            lacking, held = rollback.reduce(torch.tensor([int(lacking), held])).tolist()
        if self.shards is not None:
            # Reading theta_0 takes all ranks, so all must come to the same result.
            lacking = self.shards.any(lacking)
            # Of what the whole model has, not this rank.
            held = held if lacking else len(rollback.levels) if held else 0
        if lacking:
            rollback.give(self._given(rollback, held))
        # Of a resumed run what was loaded is its own checkpoint, which will be removed in time.
        loaded = [] if self._resumed else self.ledger.delivered.values()
        if rollback.keeper is not None:
            files = pretrained_files(self._unwrapped(), self.settings.anchor, loaded)
            rollback.keeper.origins.files[:] = files
        try:
            rollback.capture(again=True)
        except (MissingAnchorError, AnchorFileError) as error:
            raise type(error)(f'{error}. The options are those of optim_wrapper.rollback') from None
        if self.settings.anchor_saved == 'reference' and not (rollback.keeper and rollback.keeper.origins.files):
            print_log(NO_FILE, logger='current', level=logging.WARNING)
        return held

    def _tell(self, held: int) -> None:
        settings, seen = self.settings, not self._resumed and not self._initialised_before
        if self.layers is not None:
            origin = told_origin(
                self.rollback.given_levels if self.rollback else (), held, settings.anchor, self.ledger, self._named()
            )
            if settings.roots == LOADED and seen:
                origin += left_alone(self.names, self.ledger)
            sizes = self.shards.sizes if self.shards is not None else None
            report = format_report(
                self.layers, self._covered(), self.levels, [*origin, *self._penalised()], sizes, settings.rule
            )
            print_log(report, logger='current')
        if self._saved is not None:
            saved.warn(saved.changes(self._saved, self.state_dict()))
            self._saved = None
        if seen and settings.anchor in (None, 'current'):
            rolled = self.rollback.given_levels if self.rollback is not None else {}
            named = {name: p for name, p in self.names.items() if p in rolled and name not in self._returning}
            warn_of_random_theta_0(self._unwrapped(), named, self.ledger)

    def _penalised(self) -> list[str]:
        """A line on L2-SP, where it is on."""
        penalty, rollback = self.settings.penalty, self.rollback
        if penalty is None or rollback is None:
            return []
        old = sum(p.requires_grad for p in rollback.levels)
        new = sum(p.requires_grad and p not in rollback.levels for p in self.names.values())
        return [f'L2-SP: alpha={penalty.alpha:g} on {old} tensors, beta={penalty.beta:g} on {new} new ones']

    def _named(self) -> dict[str, int]:
        keeper = self.rollback.keeper if self.rollback is not None else None
        return keeper.origins.num_read if keeper is not None else {}

    def _attach_to_loaded(self, optimizer: Optimizer) -> None:
        loaded = {name for name, p in self.names.items() if p in self.ledger.delivered}
        if self._initialised_before:
            loaded |= delivered_by_init_cfg(self._unwrapped()).keys()
        if self._resumed:
            kept = (name for name, p in self.names.items() if has_anchor(optimizer.state.get(p)))
            loaded = set(self._saved_names if self._saved_names is not None else kept)
        layers = self._assign(roots_of_loaded(self._unwrapped(), loaded, self._resumed))
        index = {name: i for name, i in layers.index.items() if name in loaded | self._returning}
        self.layers = LayerTable(index=index, num_layers=layers.num_layers, labels=layers.labels, how=layers.how)
        if self.rollback is not None:
            self.rollback.detach()
        from olor_mm.models.unfreezing import held_open

        with held_open(self._trained):
            self.attach(optimizer)

    def _unwrapped(self) -> nn.Module:
        model = self.model
        while (inner := getattr(model, 'module', None) or getattr(model, '_orig_mod', None)) is not None:
            model = inner
        return model

    def _given(self, rollback: Rollback, held: int) -> dict[Tensor, Tensor]:
        """theta_0 where the settings say where it is to be read, for what the optimizer's state does not hold."""
        anchor = self.settings.anchor
        # Of all ranks: each finds the same mistakes in a file, also one that has no share of what is pulled back.
        given = set(rollback.given_levels)
        wanted = {name: p for name, p in self.names.items() if p in given and name not in self._returning}
        if anchor not in (None, 'current'):
            read = anchors_of_init_cfg if anchor == 'init_cfg' else partial(anchors_of_file, anchor)
            shards = self.shards
            found = shards.anchors(read, wanted) if shards is not None else read(self._unwrapped(), wanted)
            return {p: value for p, value in found.items() if p in rollback.levels}
        if self._resumed and anchor is None and not held and self._saved_names is None:
            raise no_theta_0(len(wanted))
        return {}

    # ---------------------------------------------------------------- while training

    def level(self) -> float:
        """The level of the shallowest layer in the present iteration, where it has a schedule of its own."""
        return self.settings.max_level * (1.0 if self.rollback is None else self.rollback.pace.factor())

    def measure(self) -> tuple[float, dict[str, float]]:
        """Overall relative discrepancy ||theta - theta_0|| / ||theta_0||, and that of each layer by label.

        It is that of the whole model: where that is sharded, every rank must call this.
        """
        if self.rollback is None or self.layers is None:
            return 0.0, {}
        parts: dict[str, list[Tensor]] = {}
        for name, p in self._covered().items():
            i = self.layers.index[name]
            parts.setdefault(f'{i:03d}_{self.layers.labels.get(i, "")}', []).append(p)
        parts = {'': list(self.rollback.levels), **dict(sorted(parts.items()))}
        if self.shards is not None:
            parts = {key: self.shards.once(params) for key, params in parts.items()}
        found = self.rollback.discrepancy(parts, self.shards.reduce if self.shards is not None else None)
        return found.pop('', 0.0), found

    def verify(self, steps_before: int, skipped: bool) -> None:
        """After a step: a rollback that never happens is an error, not a silence.

        Args:
            steps_before: ``rollback.num_steps`` before the step.
            skipped: Whether a GradScaler may have skipped the optimizer's step.

        Raises:
            RuntimeError: If the optimizer stepped and nothing was pulled back.
        """
        if self.verified or self.rollback is None:
            return
        self.ledger.close()
        # A rank may have none of the shares.
        nothing = not self.rollback.levels
        self.verified = nothing or check_first_step(self.rollback, self.settings, steps_before, skipped)
