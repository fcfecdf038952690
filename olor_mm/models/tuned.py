"""``type='olor_mm.Tuned'``: any model of any toolbox, with a method switched on."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from olor_mm.engine.trained_only import LEFT_OUT, check_left_out
from olor_mm.registry import MODELS

from .freezing import FrozenParts, freeze, summary
from .method import Method, build_method, child, plain

__all__ = ['Tuned', 'Tuning', 'tuning_of']

#: Where a tuned model keeps its :class:`Tuning`.
CHILD = 'tuning'


class Tuning(BaseModule):
    """What was done to a model; a part of it without parameters, so that MMEngine tells it when weights are in.

    Args:
        methods: In the order in which they were applied.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        super().__init__()
        self.methods = list(methods)
        self._model: list[nn.Module] = []
        self.frozen: FrozenParts | None = None
        #: State of what a method put there when it was loaded, trained as it is.
        self._as_loaded: dict[Method, list[int]] = {}

    def join(self, model: nn.Module) -> None:
        """Become a part of the model whose methods these are, and freeze what they do not train."""
        # In a list, so that the model is no part of its part.
        self._model = [model]
        model.add_module(CHILD, self)
        freeze(model, lambda name, _: any(method.trains(plain(name)) for method in self.methods))
        self.frozen = FrozenParts(model)
        model.register_load_state_dict_post_hook(_weights_were_loaded)
        for path in {method.part for method in self.methods if method.part}:
            child(model, path, 'part').register_load_state_dict_post_hook(self._part_was_loaded)

    @property
    def added(self) -> set[str]:
        """Names in the model of what the methods put there without pre-trained values to go back to."""
        return {name for method in self.methods if not method.pretrained for name in method.added}

    @property
    def pulled_back(self) -> set[str]:
        """Those of ``added`` that a rollback takes back to where they start, for that is the pre-trained model."""
        return {name for method in self.methods for name in method.added if method.pulled_back(name)}

    def train(self, mode: bool = True) -> 'Tuning':
        """Called as the last part of a model whose mode is set."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.settle()
        return self

    def init_weights(self) -> None:
        """Called last of all parts, when the others have their weights."""
        for method in self.methods:
            if self._as_loaded.get(method) != self._versions(method):
                method.weights_are_in(self._model[0])
        super().init_weights()

    def _versions(self, method: Method) -> list[int]:
        """Changes with every change of the values that a method put there."""
        params = dict(self._model[0].named_parameters())
        return [params[name]._version for name in method.added if name in params]

    def loaded(self, missing: list[str]) -> None:
        """Called when a state dict was loaded; takes the names out of ``missing`` that another model's would lack."""
        for method in self.methods:
            lacking = [key for key in missing if any(key == name or key.endswith(f'.{name}') for name in method.added)]
            if len(lacking) < len(method.added):
                self._as_loaded[method] = self._versions(method)
            elif method.added and self._came(method, lacking, missing):
                # Weights from before the method.
                method.weights_are_in(self._model[0])
                missing[:] = [key for key in missing if key not in set(lacking)]

    def _came(self, method: Method, lacking: list[str], missing: list[str]) -> bool:
        """Whether anything of the part was loaded: a head alone leaves what was trained in the part as it is."""
        prefix = next(key[: -len(name)] for name in method.added for key in lacking if key.endswith(name))
        start = f'{method.part}.' if method.part else ''
        # Parameters alone: torch makes up for counters that batch norms lack.
        own = {prefix + name for name, _ in self._model[0].named_parameters() if name.startswith(start)}
        return not own <= set(missing)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # This is the last part of the model: what the others miss is known.
        key = prefix.removesuffix(f'{CHILD}.') + LEFT_OUT
        if key in state_dict:
            missing = args[2]
            before = key.removesuffix(LEFT_OUT)
            own = {before + name for name in check_left_out(self._model[0], state_dict[key])}
            missing[:] = [name for name in missing if plain(name) not in own]

    def _part_was_loaded(self, part: nn.Module, incompatible_keys: Any) -> None:
        """The same for a part that is loaded by itself, as by its ``init_cfg``: names there begin behind the part's."""
        missing = incompatible_keys.missing_keys
        for method in self.methods:
            inside = {name.removeprefix(f'{method.part}.') for name in method.added}
            ours = bool(method.part) and self._model[0].get_submodule(method.part) is part
            came = not {name for name, _ in part.named_parameters()} <= set(missing)
            if ours and inside and not inside <= set(missing):
                self._as_loaded[method] = self._versions(method)
            elif ours and came and inside:
                method.weights_are_in(self._model[0])
                missing[:] = [key for key in missing if key not in inside]


def _weights_were_loaded(model: nn.Module, incompatible_keys: Any) -> None:
    tuning_of(model).loaded(incompatible_keys.missing_keys)


def tuning_of(model: nn.Module) -> Tuning:
    """What was done to a model.

    Raises:
        ValueError: If it was not built as ``olor_mm.Tuned``.
    """
    tuning = getattr(model, CHILD, None)
    if not isinstance(tuning, Tuning):
        raise ValueError(f"{type(model).__name__} is not tuned: build it with model=dict(type='olor_mm.Tuned', ...)")
    return tuning


def _check_found(method: Method, model: nn.Module) -> None:
    names = [plain(name) for name, _ in model.named_parameters() if method.has(name)]
    if not names:
        raise ValueError(
            f'model.method: {method}: part={method.part!r} has no parameters: give the path of what is pre-trained, '
            "such as 'backbone'"
        )
    for pattern in method.train:
        if not any(pattern.search(name) for name in names):
            raise ValueError(
                f'model.method: {method}: train={pattern.pattern!r} is found in no parameter of {method.part!r}; those '
                f'have names such as {", ".join(names[:3])}'
            )


@MODELS.register_module()
def Tuned(of: str = '', method: Any = 'Full', **model: Any) -> nn.Module:  # noqa: N802 - it stands where a class name stands
    """Build a model and change it by a method, or by several.

    The model itself is returned, not a wrapper: names of parameters, checkpoints and all that looks into the config's
    ``model`` stay as they were. In a config that inherits another it is one line.

    Args:
        of: The ``type`` that the model has without a method, such as 'ImageClassifier'.
        method: ``dict(type='LoRA', ...)``, a name, or a list of several; each trains what it trains alone.
            Defaults to 'Full'.
        **model: The rest of the model's config.

    Returns:
        The model.

    Raises:
        ValueError: If a method or an option does not exist, or the model is none that the method can take.

    Example:
        >>> model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='TopK', k=3))
    """
    if not of or not isinstance(of, (str, type)):
        raise ValueError(f"model.of={of!r} must be the type of the model without a method, such as 'ImageClassifier'")
    given = list(method) if isinstance(method, (list, tuple)) else [method]
    if not given:
        raise ValueError("model.method=[] names no method; for full fine-tuning say 'Full'")
    tuning = Tuning(sorted(map(build_method, given), key=lambda each: not each.renames))
    built: nn.Module = MMENGINE_MODELS.build({'type': of, **model})
    if isinstance(getattr(built, CHILD, None), nn.Module):
        raise ValueError(f'model.of={of!r}: this model is tuned already, or has a part named {CHILD!r} of its own')
    for each in tuning.methods:
        each.apply(built)
    for each in tuning.methods:
        _check_found(each, built)
    tuning.join(built)
    if not any(p.requires_grad for p in built.parameters()):
        raise ValueError(
            f'model.method: {", ".join(map(str, tuning.methods))} would train nothing of {type(built).__name__}: say '
            "with part= what is pre-trained ('' is the whole model), and with train= what of it is trained"
        )
    said = [line for line in (each.report(built) for each in tuning.methods) if line]
    names = ', '.join(map(str, tuning.methods))
    print_log('\n'.join([f'Fine-tuning by {names}', *said, summary(built)]), logger='current')
    return built
