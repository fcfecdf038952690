"""Padding prompts: learnable pixels around the images of a frozen backbone, of any architecture."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from olor_mm.registry import METHODS

from .method import Method, child

__all__ = ['PaddingPrompt']

#: Name of the child of the backbone that holds the pixels.
_CHILD = 'border'
#: Models whose heads read places in the image off the features.
_PLACED = ('BaseDetector', 'BaseSegmentor')
_MODES = ('pad', 'replace')
_INITS = ('zeros', 'normal')


@METHODS.register_module()
class PaddingPrompt(Method):
    """Learnable pixels in front of a frozen backbone; they and all outside of the backbone are trained.

    It is what stands for VPT on ConvNets: in the VPT paper (Jia 2022, arXiv 2203.12119, "pad") and in the comparison of
    the OLOR paper (arXiv 2401.10962). Images of one size are put into a frame, after they were normalised. The pixels'
    gradient goes through the whole backbone, so that training takes the memory of its activations.

    Args:
        size: Height and width in pixels of the images that come in, or one number for both.
        width: Of the border, in pixels at each side. Defaults to 10, as in the code of OLOR's authors.
        mode: 'pad' puts the border around the image, which grows by 2 ``width``, as both papers' authors do;
            C (2 width (w + 2 width) + 2 width h) parameters. 'replace' puts it over the outermost pixels of the image,
            so that places and sizes stay; C (2 width w + 2 width (h - 2 width)) parameters. Defaults to 'pad'.
        init: 'zeros', as OLOR's authors, the mean colour where images are normalised, or 'normal', N(0, 1), what VPT's
            authors call "gaussian". Defaults to 'zeros'.
        channels: C of the images. Defaults to 3.
        part: Path of the backbone. Defaults to 'backbone'.
        train: Regular expressions; parameters of the backbone in which one is found are trained too. Defaults to ().

    Raises:
        ValueError: If an option cannot be right, the model is a detector or segmentor and ``mode='pad'`` would move all
            that its heads see, or, in training and inference, images have another size.

    Example:
        >>> method = dict(type='PaddingPrompt', size=224, width=10)
    """

    def __init__(
        self,
        size: int | Sequence[int],
        width: int = 10,
        mode: str = 'pad',
        init: str = 'zeros',
        channels: int = 3,
        part: str = 'backbone',
        train: str | Sequence[str] = (),
    ) -> None:
        super().__init__(part, train)
        pair = [size] * 2 if isinstance(size, int) else [*size] if isinstance(size, Sequence) else []
        if len(pair) != 2 or not all(_positive(side) for side in pair):
            raise ValueError(f'PaddingPrompt: size={size!r} must be the height and width of the images, such as 224')
        for name, number in (('width', width), ('channels', channels)):
            if not _positive(number):
                raise ValueError(f'PaddingPrompt: {name}={number!r} must be a whole number, 1 at least')
        for name, value, known in (('mode', mode, _MODES), ('init', init, _INITS)):
            if value not in known:
                raise ValueError(f'PaddingPrompt: {name}={value!r} must be one of {known}')
        if mode == 'replace' and 2 * width >= min(pair):
            raise ValueError(f'PaddingPrompt: width={width} leaves nothing of images of size={tuple(pair)}')
        self.size = (int(pair[0]), int(pair[1]))
        self.width = width
        self.mode = mode
        self.init = init
        self.channels = channels

    def apply(self, model: nn.Module) -> None:
        part = child(model, self.part, f'model.method: {self}: part')
        if hasattr(part, _CHILD):
            raise ValueError(
                f'model.method: PaddingPrompt: {self.part!r} has a part called {_CHILD!r} already, as after '
                'PaddingPrompt: it can be there once'
            )
        if self.mode == 'pad' and any(kind.__name__ in _PLACED for kind in type(model).__mro__):
            raise ValueError(
                f"model.method: PaddingPrompt: mode='pad' moves all that the heads of {type(model).__name__} see by "
                f"{self.width} pixels, so that places come out wrong: set mode='replace' if all images have one size, "
                "or say dict(type='VPT') for a ViT, dict(type='LoRA') for others"
            )
        border = Border(self.channels, self.size, self.width, self.mode)
        if self.init == 'normal':
            for param in border.parameters():
                nn.init.normal_(param)
        border.join(part)
        self.added += [f'{self.part}.{_CHILD}.{name}'.lstrip('.') for name, _ in border.named_parameters()]

    def report(self, model: nn.Module) -> str:
        count = sum(p.numel() for p in child(model, self.part, 'part').get_submodule(_CHILD).parameters())
        where = 'around' if self.mode == 'pad' else 'over the outermost pixels of'
        height, width = self.size
        return (
            f'PaddingPrompt: a border of {self.width} pixels {where} images of {height} x {width}, {count:,} parameters'
        )


class Border(nn.Module):
    """Puts learnable pixels around images.

    Args:
        channels: C of the images.
        size: Height and width of the images that come in.
        width: Of the border.
        mode: 'pad' or 'replace'.

    Attributes:
        rows: (C, 2 width, full width): those above, then those below.
        columns: (C, height between the rows, 2 width): those on the left, then those on the right.
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int, mode: str) -> None:
        super().__init__()
        height, full = (size[0], size[1] + 2 * width) if mode == 'pad' else (size[0] - 2 * width, size[1])
        self.rows = nn.Parameter(torch.zeros(channels, 2 * width, full))
        self.columns = nn.Parameter(torch.zeros(channels, height, 2 * width))
        self.width = width
        self.inner = 0 if mode == 'pad' else width
        self.takes = (channels, *size)

    def join(self, part: nn.Module) -> None:
        """Become a part of the backbone. The hook is a bound method, which follows a copy of the model."""
        part.add_module(_CHILD, self)
        part.register_forward_pre_hook(self._put_on)
        self._register_load_state_dict_pre_hook(_check_loaded, with_module=True)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, h, w) with their border.

        Raises:
            ValueError: If they have another size than was said.
        """
        if x.shape[1:] != self.takes:
            (channels, *size), (own, *known) = x.shape[1:], self.takes
            raise ValueError(
                f'PaddingPrompt: images of size {tuple(size)} with {channels} channels, but size={tuple(known)}, '
                f'channels={own}: set model.method.size and model.method.channels, or resize or crop all images, in '
                'validation too, to that size'
            )
        inner = slice(self.inner, -self.inner or None)
        above, below = (part.to(x.dtype).expand(len(x), -1, -1, -1) for part in self.rows.split(self.width, 1))
        left, right = (part.to(x.dtype).expand(len(x), -1, -1, -1) for part in self.columns.split(self.width, 2))
        middle = torch.cat([left, x[:, :, inner, inner], right], dim=3)
        return torch.cat([above, middle, below], dim=2)

    def _put_on(self, part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        return (self(x), *others)


def _check_loaded(border: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse a border of other options: a loader that is not strict would only warn, and leave it as it starts."""
    for name, param in border.named_parameters():
        found = state_dict.get(prefix + name)
        if isinstance(found, Tensor) and found.shape != param.shape:
            raise ValueError(
                f'the {name} of the padding prompt are {tuple(found.shape)} in the checkpoint and {tuple(param.shape)} '
                'in the model: set model.method.size, width and mode as they were when the checkpoint was saved'
            )


def _positive(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0
