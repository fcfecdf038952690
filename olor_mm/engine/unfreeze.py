"""UnfreezeHook: what is frozen at the start of a run and trained from some point of it on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import MessageHub, print_log
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch import nn

from olor_mm.layers import canonical_name
from olor_mm.registry import HOOKS

from .rebuilding import build_optimizer_again, check_wrapper, not_optimized, unwrapped, wrap_again

__all__ = ['UnfreezeHook', 'later_trained']

_NAME = 'olor_mm.UnfreezeHook'
_INFO = 'olor_mm.unfrozen_later'


@HOOKS.register_module()
class UnfreezeHook(Hook):
    """Trains parameters from an epoch or an iteration on that are frozen until then; several do it in steps.

    Until then they neither change nor decay, whatever the optimizer. Weight rollback pulls them back to what they were,
    which are their pre-trained values. A resumed run goes on as the uninterrupted one would have, to the bit.

    The optimizer has them from the start, so that its groups and the schedules stay the same all the time: where a
    constructor leaves out what is frozen, as MMEngine's does where there is a ``paramwise_cfg``, the optimizer is built
    as if they were trained. A DistributedDataParallel is built anew at the unfreezing, for it waits for the gradients
    of exactly the parameters that were trained when it was built.

    Args:
        train: Regular expressions, searched in the full names, such as 'backbone.layers.11.attn.qkv.weight'. Each must
            be found in one at least.
        epoch: After how many epochs they are trained, counted as the runner counts, from 0: with 5 the epoch that the
            log calls 6 is the first.
        iter: After how many iterations, likewise. Exactly one of the two has to be given.

    Raises:
        ValueError: If an option cannot be right; before training, if the run ends before, a regular expression finds
            nothing that is frozen, the model freezes it again whenever it is put into train mode, or the parameters
            are sharded.

    Example:
        >>> custom_hooks = [
        ...     dict(type='olor_mm.UnfreezeHook', train=r'backbone\\.layers\\.(9|10|11)\\.', epoch=2),
        ...     dict(type='olor_mm.UnfreezeHook', train=r'backbone\\.', epoch=5)]
    """

    # Before any hook that keeps the optimizer wrapper.
    priority = 'VERY_HIGH'

    def __init__(self, train: str | list[str], epoch: int | None = None, iter: int | None = None) -> None:
        # The engine must not need the models to be imported, which may need the engine.
        from olor_mm.models.method import check_patterns

        self.patterns = check_patterns(train, f'{_NAME}: train')
        if not self.patterns:
            raise ValueError(f"{_NAME}: train={train!r} names nothing: give regular expressions, as r'backbone\\.'")
        if (epoch is None) == (iter is None):
            raise ValueError(f'{_NAME}: give epoch or iter, exactly one of them; they are {epoch!r} and {iter!r}')
        self.unit = 'iter' if epoch is None else 'epoch'
        at = iter if epoch is None else epoch
        if not isinstance(at, int) or isinstance(at, bool) or at < 0:
            raise ValueError(f'{_NAME}: {self.unit}={at!r} must be a whole number of 0 or more')
        self.at = at
        self._params: dict[str, nn.Parameter] | None = None
        self._done = False
        # The optimizer is built before any call of a hook that has the runner.
        hub = MessageHub.get_current_instance()
        hub.update_info(_INFO, [*_announced(), *self.patterns], resumed=False)

    def before_run(self, runner: Runner) -> None:
        """See that it can be done, and that the optimizer has the parameters; nothing where the run does not train.

        Raises:
            ValueError: If not.
        """
        if self._params is not None or not isinstance(getattr(runner, '_train_loop', None), BaseLoop):
            return
        # The optimizer is there. What is built in this process from now on is not of this run.
        runner.message_hub.pop_info(_INFO, None)
        from olor_mm.models.unfreezing import check_thaw, find_frozen

        self._check_end(runner)
        check_wrapper(runner.model, _NAME)
        model = unwrapped(runner.model)
        self._params = find_frozen(model, self.patterns, f'{_NAME}: train')
        check_thaw(model, self._params)
        if not_optimized(runner.optim_wrapper, self._params):
            build_optimizer_again(runner, self._params, _NAME)

    def _check_end(self, runner: Runner) -> None:
        loop: Any = runner.train_loop
        if self.unit == 'epoch' and isinstance(loop, IterBasedTrainLoop):
            raise ValueError(
                f'{_NAME}: epoch={self.at}, but train_cfg counts iterations: say iter=..., a number below '
                f'max_iters={loop.max_iters}'
            )
        end = loop.max_epochs if self.unit == 'epoch' else loop.max_iters
        if self.at >= end:
            raise ValueError(
                f'{_NAME}: {self.unit}={self.at}, but training ends after {end}: nothing would be unfrozen. Counting '
                f'starts at 0; say {end - 1} at most'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Unfreeze, if it is time; also in the first epoch after a later resume."""
        if self.unit == 'epoch' and runner.epoch >= self.at:
            self._unfreeze(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Unfreeze, if it is time; also in the first iteration after a later resume."""
        if self.unit == 'iter' and runner.iter >= self.at:
            self._unfreeze(runner)

    def _unfreeze(self, runner: Runner) -> None:
        if self._done or self._params is None:
            return
        from olor_mm.models.freezing import summary
        from olor_mm.models.unfreezing import thaw

        self._done = True
        model = unwrapped(runner.model)
        # Another hook may have unfrozen some of them.
        count = sum(not p.requires_grad for p in self._params.values())
        thaw(model, self._params)
        wrap_again(runner)
        print_log(
            f'{count} tensors more are trained from {self.unit} {self.at} on ({_NAME})\n{summary(model)}',
            logger='current',
        )


def _announced() -> list[Any]:
    """What the hooks of the current run will unfreeze: compiled regular expressions."""
    return list(MessageHub.get_current_instance().get_info(_INFO, []))


@contextmanager
def later_trained(model: nn.Module) -> Iterator[None]:
    """Inside, what hooks of the current run will unfreeze is as if it were trained, for who builds an optimizer."""
    patterns = _announced()
    if not patterns:
        yield
        return
    from olor_mm.models.method import matches
    from olor_mm.models.unfreezing import held_open, is_number

    named = model.named_parameters(remove_duplicate=False)
    with held_open([p for name, p in named if matches(patterns, canonical_name(name)) and is_number(p)]):
        yield
