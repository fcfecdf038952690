"""How theta_0 is kept: in which dtype, in which memory, and whether a checkpoint has its values or says where they are.

Each way gives the same results to the last bit; docs/memory.md says what each costs.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ._lossless import narrowed
from ._mapping import AnchorFileError, MappedFile, default_folder, written
from ._origins import UNUSABLE, Origins, first_line, size_of
from ._prefetch import Prefetch, pinned
from ._references import Candidates
from ._shards import local, spread_like
from ._staging import Stage, strides_of

__all__ = ['AnchorFileError', 'Keep', 'Keeper']

_CHOICES = {
    'dtype': ('param', 'lossless'),
    'memory': ('param', 'pinned', 'mapped'),
    'saved': ('values', 'reference'),
}


@dataclass(frozen=True)
class Keep:
    """How theta_0 is kept. The options are independent of each other, and of what a checkpoint was saved with.

    Args:
        dtype: 'param', that of the parameter; 'lossless' for float16 or bfloat16 where every value of a tensor
            converts there and back to the same bits, which is proven for each tensor when it is taken, else the
            parameter's. Defaults to 'param'.
        memory: 'param', where the parameter is; 'pinned' for pinned host memory, from where it is brought to the GPU
            while the backward pass is at work; 'mapped' for a file that is mapped into memory, which all processes of
            a machine share. Defaults to 'param'.
        saved: What the optimizer's state dict holds: 'values'; or 'reference', the path and SHA-256 of the pre-trained
            file, for what is in that file bit by bit. Defaults to 'values'.
        folder: Where 'mapped' writes what is in no file yet. Defaults to None, which is ``olor_mm/theta_0`` in the
            user's cache ($XDG_CACHE_HOME or ~/.cache).

    Raises:
        ValueError: If a value is not known, or a folder is given that nothing is written to.
    """

    dtype: str = 'param'
    memory: str = 'param'
    saved: str = 'values'
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        for option, choices in _CHOICES.items():
            value = getattr(self, option)
            if value not in choices:
                raise ValueError(f'anchor_{option}={value!r} is not known: choose one of {", ".join(choices)}')
        if self.folder is None:
            return
        if not isinstance(self.folder, (str, Path)) or not str(self.folder).strip():
            raise ValueError(f'anchor_folder={self.folder!r} must be the name of a folder, or None')
        if self.memory != 'mapped':
            raise ValueError(
                f"anchor_folder={str(self.folder)!r} is for anchor_memory='mapped', but that is {self.memory!r}: leave "
                'the folder away, or set both'
            )

    @property
    def told(self) -> str:
        """The options that are not the default ones, as one would write them; '' where all are."""
        return ', '.join(
            f'anchor_{option}={getattr(self, option)!r}'
            for option, choices in _CHOICES.items()
            if getattr(self, option) != choices[0]
        )


class Keeper:
    """Keeps theta_0 as :class:`Keep` says.

    Args:
        options: How.
        names: Parameter to name, for messages and files.
        anchor: Gives theta_0 of a parameter as it is kept, if it is.

    Attributes:
        origins: The pre-trained files.
        is_plain: Whether theta_0 is just what the kernels read.
        prefetch: What brings it to a GPU ahead of the step; None where nothing does.
        stage: What brings it to where the kernels read it; None where it is there.
    """

    def __init__(self, options: Keep, names: Mapping[Tensor, str], anchor: Callable[[Tensor], Tensor | None]) -> None:
        self.options = options
        self.origins = Origins(names)
        self.is_plain = options.dtype == options.memory == 'param'
        self.prefetch = Prefetch(anchor) if options.memory == 'pinned' else None
        self.stage = None if self.is_plain else Stage(None if self.prefetch is None else self.prefetch.arrived)
        self._maps: list[MappedFile] = []

    # ---------------------------------------------------------------- keeping

    def keep(self, values: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """theta_0 as it is to be kept.

        Args:
            values: Parameter to theta_0, of any dtype and on any device, maybe the parameter's own memory.

        Returns:
            Parameter to a tensor that nothing else writes to.

        Raises:
            AnchorFileError: If a file is needed that cannot be written.
        """
        if self.is_plain or not values:
            return {param: _plain(value, param) for param, value in values.items()}
        kept = {param: self._fitted(value, param) for param, value in values.items()}
        if self.options.memory == 'mapped':
            kept = self._map(kept)
        if self.options.dtype == 'lossless':
            self._tell_narrowed(kept)
        if self.prefetch is not None:
            self.prefetch.drop()
            self.prefetch.watch(param for param, value in kept.items() if value.device != param.device)
        return kept

    def _fitted(self, value: Tensor, param: Tensor) -> Tensor:
        """Of the dtype and in the memory that is wanted; with 'mapped' not there yet."""
        memory = self.options.memory
        device = param.device if memory == 'param' else value.device
        fitted = value.detach().to(device=device, dtype=param.dtype)
        strides = strides_of(param)
        if fitted.stride() != strides:
            fitted = torch.empty_strided(param.shape, strides, dtype=param.dtype, device=device).copy_(fitted)
        if self.options.dtype == 'lossless':
            fitted = narrowed(fitted)
        if memory == 'pinned':
            fitted = self._pinned(fitted, param)
        if memory != 'mapped' and fitted.data_ptr() == param.data_ptr():
            fitted = fitted.clone(memory_format=torch.preserve_format)
        return fitted

    def _pinned(self, value: Tensor, param: Tensor) -> Tensor:
        if param.device.type == 'cuda':
            return pinned(value)
        if param.device.type != 'cpu':
            raise ValueError(
                f"anchor_memory='pinned' is for CUDA, but {self.origins.name(param)} is on {param.device}: leave it "
                'away there'
            )
        # Not refused: the same config is to run on a machine without a GPU, to try it out.
        self.origins.say(
            logging.INFO, "theta_0: anchor_memory='pinned' changes nothing on the CPU: it is in host memory already"
        )
        return value.to(param.device)

    def _map(self, values: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        kept: dict[Tensor, Tensor] = {}
        lacking = {param: value for param, value in values.items() if value.numel()}
        for path in self.origins.files:
            found = self._map_known(path, lacking) if lacking else {}
            kept.update(found)
            lacking = {param: value for param, value in lacking.items() if param not in found}
        if lacking:
            names = {param: f'{i} {self.origins.name(param)}' for i, param in enumerate(lacking)}
            folder = self.options.folder or default_folder()
            file, maps = written({names[param]: value for param, value in lacking.items()}, folder)
            self._keep_open(file, lacking.values())
            kept.update({param: maps[name] for param, name in names.items()})
        # What has no elements takes no memory.
        return {param: kept.get(param, value) for param, value in values.items()}

    def _map_known(self, path: str, values: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """What a pre-trained file holds in the dtype in which it is kept."""
        try:
            file = MappedFile(path, self.origins.read)
        except UNUSABLE as error:
            self.origins.say(logging.INFO, f'theta_0 is not mapped from {path}: {first_line(error)}')
            return {}
        candidates = Candidates(file.tensors)
        keys = {p: candidates.find(value.cpu(), self.origins.name(p), True) for p, value in values.items()}
        found = {param: file.tensors[key] for param, key in keys.items() if key is not None}
        if found:
            self._keep_open(file, found.values())
        else:
            file.close()
        return found

    def _keep_open(self, file: MappedFile, values: Iterable[Tensor]) -> None:
        self._maps.append(file)
        values = list(values)
        self.origins.say(
            logging.INFO, f'theta_0: {len(values)} tensors, {size_of(values)}, are mapped from {file.path}'
        )

    def _tell_narrowed(self, kept: Mapping[Tensor, Tensor]) -> None:
        half = [value for param, value in kept.items() if value.element_size() < param.element_size()]
        full = sum(value.numel() * param.element_size() for param, value in kept.items())
        text = f'theta_0: {len(half)} of {len(kept)} tensors are kept in fewer bits, all of them in '
        text += f'{size_of(kept.values())} instead of {full / 2**20:.1f} MiB'
        if half or not full:
            self.origins.say(logging.INFO, text)
        else:
            self.origins.say(
                logging.WARNING,
                f"anchor_dtype='lossless' saves nothing: none of the {len(kept)} tensors of theta_0 has the values of "
                'a half precision checkpoint; leave it away',
            )

    # ---------------------------------------------------------------- while training

    def check(self) -> None:
        """See that files that are mapped are as they were; before they are read.

        Raises:
            AnchorFileError: If one has been written to.
        """
        for file in self._maps:
            file.check()

    def after_step(self) -> None:
        """Free what was brought to the device for a step."""
        if self.prefetch is not None:
            self.prefetch.drop()

    def forget(self) -> None:
        """theta_0 is to be taken anew."""
        if self.prefetch is not None:
            self.prefetch.drop()
        for file in self._maps:
            file.close()
        self._maps.clear()
        self.origins.forget()

    def close(self) -> None:
        """Free everything."""
        self.forget()
        if self.prefetch is not None:
            self.prefetch.close()
        if self.stage is not None:
            self.stage.clear()


def _plain(value: Tensor, param: Tensor) -> Tensor:
    """In the parameter's dtype, device and memory layout, which the kernels rely on."""
    if local(value).data_ptr() == local(param).data_ptr():
        value = value.detach().clone(memory_format=torch.preserve_format)
    value = spread_like(value, param).detach().to(device=param.device, dtype=param.dtype)
    if value.stride() != param.stride():
        value = torch.empty_like(param, memory_format=torch.preserve_format).copy_(value)
    return value
