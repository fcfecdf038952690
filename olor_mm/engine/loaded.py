"""``roots='loaded'``: from what a checkpoint delivered to the sub-modules whose layers are counted."""

from collections.abc import Collection

from torch import nn

from olor_mm.rollback import MissingAnchorError

__all__ = ['roots_of_loaded']


def roots_of_loaded(model: nn.Module, loaded: Collection[str], resumed: bool) -> tuple[str, ...]:
    """The sub-modules that hold what was loaded, in forward order.

    Args:
        model: The model, not wrapped.
        loaded: Names of the parameters that a checkpoint delivered.
        resumed: Whether the run goes on from a checkpoint.

    Raises:
        MissingAnchorError: If nothing is known to have been loaded, and the run is resumed.
        ValueError: If nothing was loaded.
    """
    if not loaded and resumed:
        raise MissingAnchorError(
            "optim_wrapper.rollback.roots='loaded': the run is resumed from a checkpoint that was saved without "
            "OLOR, so what had been loaded at its start is not known; name the roots, as ('backbone',), and give "
            'optim_wrapper.rollback.anchor'
        )
    if not loaded:
        raise ValueError(
            "optim_wrapper.rollback.roots='loaded': no checkpoint delivered any parameter of the model; set "
            "load_from or an init_cfg of type 'Pretrained', or name the roots, as ('backbone',)"
        )
    tops = {name.split('.')[0] for name in loaded}
    children = [child for child, _ in model.named_children() if child in tops]
    if not tops <= set(children) or not any('backbone' in child for child in children):
        # A model without a backbone of that name is one itself.
        return ('',)
    # Heads run last wherever they are registered: DETR's is in front of its encoder.
    return tuple(sorted(children, key=lambda child: 'head' in child))
