"""Where theta_0 came from, in words: for the report at the start, and for the warning where it came from nowhere."""

import logging
from collections.abc import Iterable, Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from olor_mm.rollback import MissingAnchorError

from .ledger import LoadLedger
from .report import format_left_alone, format_unmatched
from .vit_checkpoints import scheme_for

__all__ = ['NO_FILE', 'left_alone', 'no_theta_0', 'told_origin', 'warn_of_random_theta_0']

#: A warning.
NO_FILE = (
    "optim_wrapper.rollback.anchor_saved='reference': no file of pre-trained weights on this machine is known, so "
    'checkpoints hold the values of theta_0; load them by load_from or init_cfg, or name their file with anchor'
)


def told_origin(
    levels: Iterable[Tensor], held: int, anchor: str | None, ledger: LoadLedger, named: Mapping[str, int]
) -> list[str]:
    """Lines of the report.

    Args:
        levels: What is pulled back.
        held: Of how many tensors the resumed checkpoint had theta_0.
        anchor: ``optim_wrapper.rollback.anchor``.
        ledger: What was loaded.
        named: File that the resumed checkpoint names to the number of tensors that were read from it.
    """
    rolled = list(levels)
    if held:
        # What was frozen all along has none, and needs none.
        trained = sum(p.requires_grad for p in rolled)
        files = ''.join(f', {number} of them from {file}, which it names' for file, number in named.items())
        return [f'theta_0: {held} of {max(held, trained)} tensors from the resumed checkpoint{files}']
    if anchor not in (None, 'current'):
        return [f'theta_0: {len(rolled)} tensors from anchor={anchor!r}']
    params = [p for p in rolled if p.requires_grad]
    return [f'theta_0: {n} of {len(params)} tensors from {f}' for f, n in ledger.sources(params).items()]


def left_alone(names: Mapping[str, Tensor], ledger: LoadLedger) -> list[str]:
    """With ``roots='loaded'``: what is not pulled back, and why."""
    return format_left_alone({k: p for k, p in names.items() if p not in ledger.delivered}, ledger.mismatched)


def no_theta_0(number: int) -> MissingAnchorError:
    """The error of a run that goes on from a checkpoint without OLOR."""
    return MissingAnchorError(
        f'the run is resumed, but its checkpoint has no theta_0 of the {number} tensors to be pulled back '
        '(it was saved without OLOR, or with save_optimizer=False). Pulling them back to what they are now '
        'would keep the fine-tuned weights, not the pre-trained ones. Set optim_wrapper.rollback.anchor to '
        "the file with the pre-trained weights, to 'init_cfg' for those that the model's init_cfg names, or to "
        "'current' if the resumed weights are the ones to keep"
    )


def warn_of_random_theta_0(model: nn.Module, rolled: Mapping[str, Tensor], ledger: LoadLedger) -> None:
    """Say which weights are pulled back to values that no checkpoint delivered.

    Args:
        model: The model, not wrapped.
        rolled: Name to parameter, of what is pulled back.
        ledger: What was loaded.
    """
    names = {name: p for name, p in rolled.items() if p.requires_grad}
    unmatched = {name: p for name, p in names.items() if p not in ledger.delivered}
    if not unmatched:
        return
    text = format_unmatched(unmatched, len(names), ledger.mismatched)
    if 2 * len(unmatched) > len(names):
        schemes = {scheme_for(dict(child.named_parameters())) for child in model.children()} - {None}
        text += ''.join(f" A ViT under another library's names loads with {scheme!r} before it." for scheme in schemes)
    print_log(text, logger='current', level=logging.WARNING)
