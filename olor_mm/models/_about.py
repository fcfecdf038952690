"""What a checkpoint says of the options that it was trained with, where other ones would load and mean another thing.

A loader that is not strict, MMEngine's, only warns of tensors of other shapes, and leaves what was added to a model as
it starts: the model is then tested as if it had not been trained.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ['check_about', 'check_shapes', 'tell_about']

_ABOUT = 'olor_mm'


def check_shapes(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, method: str, options: str) -> None:
    """See that the parameters of a module have the shapes of a checkpoint, as far as they are in it.

    Args:
        module: The module.
        state_dict: What is loaded.
        prefix: Of the module's entries in it.
        method: What put the module there.
        options: Those of the method that the shapes come from.

    Raises:
        ValueError: If one has another shape.
    """
    for name, param in module.named_parameters():
        found = state_dict.get(prefix + name)
        if isinstance(found, Tensor) and found.shape != param.shape:
            raise ValueError(
                f'{prefix}{name} of {method} is {tuple(found.shape)} in the checkpoint and {tuple(param.shape)} in the '
                f'model: set {options} of model.method as they were when the checkpoint was saved, or load weights '
                'from before the fine-tuning'
            )


def tell_about(module: nn.Module, options: Mapping[str, Any]) -> None:
    """Have a module's options saved with its state, among what torch notes of each module beside it.

    Args:
        module: The module.
        options: Those that the shapes of its parameters do not tell; numbers and lists of such.
    """
    vars(module)[_ABOUT] = dict(options)
    module._register_state_dict_hook(_note)


def _note(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    metadata[_ABOUT] = dict(vars(module)[_ABOUT])


def check_about(module: nn.Module, metadata: Mapping[str, Any], prefix: str, method: str, options: str) -> None:
    """See that a module has the options of a checkpoint, as far as that tells.

    Args:
        module: The module.
        metadata: What is noted beside the state of the module.
        prefix: Of the module's entries in the checkpoint.
        method: What put the module there.
        options: Names of the options.

    Raises:
        ValueError: If it has others.
    """
    own, saved = vars(module)[_ABOUT], metadata.get(_ABOUT)
    if isinstance(saved, Mapping) and dict(saved) != own:
        raise ValueError(
            f'the checkpoint was trained by {method} with other options: {prefix.removesuffix(".")} has '
            f'{_told(saved)} in it and {_told(own)} in the model; set {options} of model.method as they were when it '
            'was saved'
        )


def _told(options: Mapping[str, Any]) -> str:
    return ', '.join(f'{name}={value}' for name, value in options.items())
