"""Which parameters are trained, and that nothing that is frozen drops paths or counts its inputs' statistics."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from olor_mm.engine.report import table

__all__ = ['FrozenParts', 'always_eval', 'freeze', 'summary']


def freeze(model: nn.Module, trained: Callable[[str, nn.Parameter], bool]) -> None:
    """Stop the gradients of all parameters that are not to be trained.

    What is frozen already stays so: a backbone's own ``frozen_stages`` go on to count.

    Args:
        model: The model.
        trained: Whether a parameter is, by its name and itself.
    """
    for name, param in model.named_parameters():
        if not trained(name, param):
            param.requires_grad_(False)


def summary(model: nn.Module) -> str:
    """How many parameters are trained of each part of a model and of all of it: a text of several lines."""
    rows = []
    parts = [(name, [*child.parameters()]) for name, child in model.named_children()]
    own = [*model.parameters(recurse=False)]
    for name, params in [('(the model itself)', own), *parts]:
        if params:
            rows.append([name, *_counts(params)])
    rows.append(['all', *_counts([*model.parameters()])])
    return table(rows, ['part', 'parameters', 'trained', 'share', 'tensors trained'])


def _counts(params: list[nn.Parameter]) -> list[str]:
    trained = [p for p in params if p.requires_grad]
    count, of = sum(p.numel() for p in trained), sum(p.numel() for p in params)
    share = f'{100 * count / of:.3g}%' if of else '-'
    return [f'{of:,}', f'{count:,}', share, f'{len(trained)} of {len(params)}']


class FrozenParts:
    """Keeps what is frozen in eval mode, whoever calls ``train()``.

    Modules all of whose parameters are frozen go to eval mode right before they run, so that drop path and dropout
    inside of them are off, and batch norms neither use nor count the statistics of the batch.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self.find()

    def find(self) -> None:
        """Look again at what is frozen; to be called when that has changed."""
        self.release()
        self._handles = [module.register_forward_pre_hook(_to_eval) for _, module in _frozen(self._model)]

    def release(self) -> None:
        """Leave the modes of all modules to others."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def names(self) -> list[str]:
        """The modules that are kept so, without those inside of them."""
        return [name for name, _ in _frozen(self._model)]


def always_eval(modules: Iterable[nn.Module]) -> None:
    """Keep modules in eval mode whenever they run: those without parameters, such as a dropout between frozen parts."""
    for module in modules:
        module.register_forward_pre_hook(_to_eval)


def _to_eval(module: nn.Module, _: Any) -> None:
    if module.training:
        module.eval()


def _frozen(module: nn.Module, name: str = '') -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that run, hold parameters, and of these only frozen ones."""
    params = [*module.parameters()]
    if not params:
        return
    if not any(p.requires_grad for p in params) and _runs(module):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _frozen(child, f'{name}.{child_name}' if name else child_name)


def _runs(module: nn.Module) -> bool:
    """Whether a module has a forward of its own: lists are only walked over."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)) and type(module) is not nn.Module
