"""SaveTrainedHook: checkpoints of what was trained alone, which go together with the pre-trained weights again."""

import math
import zlib
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from olor_mm.registry import HOOKS, type_name

__all__ = ['LEFT_OUT', 'OtherWeightsError', 'SaveTrainedHook', 'check_left_out', 'needs_pretrained']

#: Key in a state dict: of each tensor that was left out the CRC-32 of its name, and two numbers made of its values.
LEFT_OUT = 'tuning.left_out'

_EMA = 'module.'
_SHARDED = ('FullySharded', 'FSDP', 'DeepSpeed', 'ColossalAI')
_Print = tuple[float, float]


class OtherWeightsError(RuntimeError):
    """A checkpoint of what was trained alone meets other pre-trained weights than those it was trained with."""


@HOOKS.register_module()
class SaveTrainedHook(Hook):
    """Leaves out of checkpoints what was not trained: weights that are frozen and buffers that have not changed.

    What is left out is what ``requires_grad`` says is frozen and has the values that it had when the run started. All
    else is kept, such as the head, trained biases and norms, batch norms' statistics, the optimizer's state, and
    averaged weights (EMAHook). Numbers made of what is left out are saved in its place. On loading, that is in a
    resumed run, a test and ``load_from``, the model's own values are put in, and they must be the same: the pre-trained
    weights have to come from ``init_cfg`` again.

    Example:
        >>> custom_hooks = [dict(type='olor_mm.SaveTrainedHook')]
    """

    #: What is loaded is whole before others look at it.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        #: Names of what may be left out; None for all there is.
        self._names: set[str] | None = None
        self.prints: dict[str, _Print] = {}

    def before_run(self, runner: Runner) -> None:
        """See to it that what others add to a checkpoint is there when it is saved.

        Raises:
            ValueError: If the model is cut into shards.
        """
        kinds = [type(runner.model).__name__, type(getattr(runner, 'strategy', None)).__name__]
        wrong = [kind for kind in kinds if any(name in kind for name in _SHARDED)]
        if wrong:
            raise ValueError(
                f'SaveTrainedHook does not know the shards of {wrong[0]}: take it out of custom_hooks, or train with '
                'DistributedDataParallel'
            )
        if not any(isinstance(hook, _LeaveOut) for hook in runner.hooks):
            runner.register_hook(_LeaveOut(self), priority='LOWEST')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put in what was left out; of a whole checkpoint to go on from, note what is as pre-trained in it.

        Raises:
            OtherWeightsError: If the model has other weights than the checkpoint was trained with.
        """
        model, state = _unwrapped(runner.model), checkpoint.get('state_dict')
        if not isinstance(state, MutableMapping):
            return
        if LEFT_OUT in state:
            own = _complete(model, state)
            # Averages of what does not change.
            ema = checkpoint.get('ema_state_dict')
            if ema is not None:
                ema.pop(f'{_EMA}{LEFT_OUT}', None)
                ema.update({_EMA + name: value.clone() for name, value in own.items() if _EMA + name not in ema})
            self._names = set(own)
        elif runner._resume:
            own = model.state_dict()
            self._names = {name for name, value in own.items() if name in state and _same(value, state[name])}

    def before_train(self, runner: Runner) -> None:
        """Note what the weights are that training starts from."""
        state = _unwrapped(runner.model).state_dict()
        self.prints = {
            name: _print(value) for name, value in state.items() if self._names is None or name in self._names
        }


class _LeaveOut(Hook):
    """The part of SaveTrainedHook that comes last."""

    def __init__(self, hook: SaveTrainedHook) -> None:
        self._hook = hook

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        prints, state = self._hook.prints, checkpoint['state_dict']
        ema = checkpoint.get('ema_state_dict') or {}
        trained = {name for name, p in _unwrapped(runner.model).named_parameters() if p.requires_grad}
        left_out = [
            name
            for name in prints
            if name in state
            and name not in trained
            and all(_print(value) == prints[name] for value in (state[name], ema.get(_EMA + name)) if value is not None)
        ]
        for name in left_out:
            del state[name]
            ema.pop(_EMA + name, None)
        state[LEFT_OUT] = torch.tensor([[_number(name), *prints[name]] for name in left_out], dtype=torch.float64)


def check_left_out(model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """See that a model has what was left out of a checkpoint.

    Args:
        model: The model.
        rows: What the checkpoint has under :data:`LEFT_OUT`.

    Returns:
        Name to the model's own value, of what was left out.

    Raises:
        OtherWeightsError: If it has other values.
    """
    state = model.state_dict()
    names = {_number(name): name for name in state}
    wanted = {names.get(int(number)): (norm, product) for number, norm, product in rows.reshape(-1, 3).tolist()}
    absent = None in wanted
    wrong = [name for name, expected in wanted.items() if name is not None and not _alike(state[name], expected)]
    if absent or wrong:
        raise OtherWeightsError(_told(len(rows), absent, wrong))
    return {name: state[name] for name in wanted if name is not None}


def _complete(model: Any, state: MutableMapping[str, Any]) -> dict[str, Tensor]:
    """Put into a state dict what was left out of it.

    Returns:
        It.
    """
    rows = state.pop(LEFT_OUT)
    try:
        own = check_left_out(model, rows)
    except OtherWeightsError:
        if getattr(model, 'is_init', True):
            raise
        # MMEngine initialises no weights for a test.
        model.init_weights()
        own = check_left_out(model, rows)
    own = {name: value for name, value in own.items() if name not in state}
    state.update(own)
    return own


def _told(number: int, absent: bool, wrong: Iterable[str]) -> str:
    names = list(wrong)
    what = f'{len(names)} of them have other values in this model: {", ".join(names[:3])}' if names else ''
    if len(names) > 3:
        what += ', ...'
    if absent:
        what = 'some are not in this model, so it is not the one that was trained' + (f', and {what}' if what else '')
    return (
        f'the checkpoint holds only what was trained (SaveTrainedHook), and {number} other tensors must be in the '
        f"model; {what}. They come from where training started: name that file in the model's init_cfg, as "
        "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE), or model.init_cfg for all of the model, "
        'also where the run had it as load_from; or load it before this one'
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    inner: Any = model.module if is_model_wrapper(model) else model
    return getattr(inner, '_orig_mod', inner)


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def _print(value: Tensor) -> _Print:
    flat = value.detach().flatten()
    flat = (torch.view_as_real(flat).flatten() if flat.is_complex() else flat).double()
    ramp = torch.linspace(-1, 1, len(flat), dtype=torch.float64, device=flat.device)
    return flat.norm().item(), (flat @ ramp).item()


def _alike(value: Tensor, expected: _Print) -> bool:
    """Whether it is the same but for rounding: what is resized on loading may differ by that on another machine."""
    scale = 1e-5 * abs(expected[0]) + 1e-12
    return all(math.isclose(a, b, rel_tol=0, abs_tol=scale) for a, b in zip(_print(value), expected, strict=True))


def _same(value: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and value.shape == other.shape and torch.equal(value.cpu(), other.cpu())


def needs_pretrained(cfg: Mapping[str, Any]) -> bool:
    """Whether the checkpoints of a run lack the pre-trained weights."""
    hooks = cfg.get('custom_hooks') or ()
    return any(type_name(hook.get('type')) == 'SaveTrainedHook' for hook in hooks if isinstance(hook, Mapping))
