"""Which parameters are trained, and that nothing that is frozen drops paths or counts its inputs' statistics."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from olor_mm.engine.report import table

__all__ = ['FrozenParts', 'freeze', 'summary']


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
    """How many parameters are trained of each part of a model and of all of it: a text of several lines.

    Parameters that several parts share are counted in the first of them.
    """
    rows = []
    counted: set[nn.Parameter] = set()
    parts = [(name, [*child.parameters()]) for name, child in model.named_children()]
    own = [*model.parameters(recurse=False)]
    for name, params in [('(the model itself)', own), *parts]:
        fresh = [p for p in params if p not in counted]
        counted.update(fresh)
        if fresh:
            rows.append([name, *_counts(fresh)])
    rows.append(['all', *_counts([*model.parameters()])])
    return table(rows, ['part', 'parameters', 'trained', 'share', 'tensors trained'])


def _counts(params: list[nn.Parameter]) -> list[str]:
    trained = [p for p in params if p.requires_grad]
    count, of = sum(p.numel() for p in trained), sum(p.numel() for p in params)
    share = f'{100 * count / of:.3g}%' if of else '-'
    return [f'{of:,}', f'{count:,}', share, f'{len(trained)} of {len(params)}']


class FrozenParts:
    """Keeps what is frozen in eval mode, whoever calls ``train()``.

    So drop path and dropout are off in it, and batch norms neither use nor count the statistics of the batch. Kept are
    modules all of whose parameters are frozen, and those without parameters that lie between two such in front of the
    first trained parameter, such as a ViT's dropout after the position embedding. A dropout right in front of a trained
    layer is that layer's.

    Args:
        model: The model.
        among: The modules that may be kept; None for all. Defaults to None.
    """

    def __init__(self, model: nn.Module, among: Collection[nn.Module] | None = None) -> None:
        self._model = model
        self._among = None if among is None else list(among)
        self._kept: list[tuple[str, nn.Module]] = []
        self._hooked: list[nn.Module] = []
        self._handles: list[Any] = []
        self.find()

    def find(self) -> None:
        """Look again at what is frozen; to be called when that has changed."""
        kept = _frozen(self._model)
        if self._among is not None:
            kept = [(name, module) for name, module in kept if any(module is other for other in self._among)]
        # With nothing frozen in front of them, inputs are as they are without us.
        gates = _checkpointed(self._model) if kept else []
        now = [*(module for _, module in kept), *gates]
        if [*map(id, now)] != [*map(id, self._hooked)]:
            self.release()
            self._handles = [module.register_forward_pre_hook(_to_eval) for _, module in kept]
            self._handles += [module.register_forward_pre_hook(_with_gradient) for module in gates]
            self._hooked = now
        self._kept = kept

    def settle(self) -> None:
        """Put into eval mode what is frozen by now; also where modules were replaced, as those of SyncBN are."""
        self.find()
        for _, module in self._kept:
            _to_eval(module)

    def release(self) -> None:
        """Leave the modes of all modules to others."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept, self._hooked = [], [], []

    @property
    def names(self) -> list[str]:
        """The modules that are kept so, without those inside of them."""
        return [name for name, _ in self._kept]


def _to_eval(module: nn.Module, *_: Any) -> None:
    if module.training:
        module.eval()


def _checkpointed(model: nn.Module) -> list[nn.Module]:
    """Trained modules whose forward something else was put in the place of, as activation checkpointing does."""
    found = [module for module in model.modules() if 'forward' in vars(module)]
    return [module for module in found if any(p.requires_grad for p in module.parameters())]


def _with_gradient(module: nn.Module, args: Any) -> Any:
    """Let an input need a gradient if none does.

    torch's reentrant checkpointing, MMEngine's ``activation_checkpointing``, gives a module no gradients if its inputs
    need none, as behind frozen ones: it and all in front of it would not be trained.
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
    if not torch.is_grad_enabled() or not tensors or any(tensor.requires_grad for tensor in tensors):
        return None
    return tuple(arg.detach().requires_grad_() if arg is tensors[0] else arg for arg in args)


def _frozen(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What :class:`FrozenParts` keeps: names and modules, in the order in which they were registered."""
    search = _Search()
    search.look(model, '')
    return search.found


class _Search:
    """A walk over a model's modules in the order in which they were registered, mostly that in which they run."""

    def __init__(self) -> None:
        self.found: list[tuple[str, nn.Module]] = []
        #: Those without parameters since the last frozen one: what comes next decides.
        self._waiting: list[tuple[str, nn.Module]] = []
        self._met_frozen = self._met_trained = False

    def look(self, module: nn.Module, name: str, in_frozen_list: bool = False) -> None:
        """Look at a module and what is inside of it."""
        flags = [p.requires_grad for p in module.parameters()]
        if not flags and in_frozen_list:
            self.found.append((name, module))
        # In front of all parameters there is augmentation; what has statistics was pre-trained.
        elif not flags and not self._met_trained and (self._met_frozen or isinstance(module, _NormBase)):
            self._waiting.append((name, module))
        elif flags and not any(flags) and _runs(module):
            self._meet(False)
            self.found.append((name, module))
        elif flags:
            own = [p.requires_grad for p in module.parameters(recurse=False)]
            if own:
                self._meet(any(own))
            for key, child in module.named_children():
                self.look(child, f'{name}.{key}' if name else key, not any(flags))

    def _meet(self, trained: bool) -> None:
        if trained:
            self._met_trained = True
        else:
            self._met_frozen = True
            self.found += self._waiting
        self._waiting = []


def _runs(module: nn.Module) -> bool:
    """Whether a module has a forward of its own: lists are only walked over."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)) and type(module) is not nn.Module
