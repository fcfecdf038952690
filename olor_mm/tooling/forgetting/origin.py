"""theta_0: the weights that a fine-tuned model started from, and which of them came from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn

from ...engine.ledger import LoadLedger
from ...engine.loading import local_file
from ...engine.vit_checkpoints import plain_address
from ..errors import InputError
from ..weights import weight_files

__all__ = ['Origin', 'file_of', 'origin_of', 'plain_name', 'source_of']

#: A weight that LoRA changes where it is read.
_PARAMETRIZED = re.compile(r'\.parametrizations\.(\w+)\.original$')


@dataclass
class Origin:
    """theta_0 of a model.

    Attributes:
        state: State dict of the model with the pre-trained weights in it, on the CPU; what no file delivered has its
            initial values.
        params: Names of the parameters that a file delivered.
        buffers: Names of the buffers of the modules that own such parameters, such as batch norms' statistics.
        source: The file or address, as the config has it.
    """

    state: dict[str, Tensor]
    params: list[str]
    buffers: list[str]
    source: str

    def has_all(self, path: str) -> bool:
        """Whether a file delivered all parameters of a part of the model, of which it has some."""
        own = [name for name in self.state if name.startswith(f'{path}.') and name not in self.buffers]
        return bool(own) and set(own) <= set(self.params)


def source_of(cfg: Mapping[str, Any]) -> str:
    """Where the pre-trained weights of a config come from: its ``init_cfg``, or ``load_from``.

    Raises:
        InputError: If it names none, or several files.
    """
    found = dict(weight_files(cfg))
    load_from = found.pop('load_from', None)
    if load_from is not None and not cfg.get('resume'):
        return str(load_from)
    files = list(dict.fromkeys(found.values()))
    if len(files) != 1:
        raise InputError(
            f'the config names {len(files) or "no"} files of pre-trained weights, where one is needed to compare with'
            + (f': {", ".join(files)}' if files else ''),
            "set it with: --pretrained FILE, the backbone's, or --cfg-options load_from=FILE, the whole model's",
        )
    return files[0]


def origin_of(cfg: Config, model: nn.Module) -> Origin:
    """Initialise a model as the start of its training would, and note what came from a file.

    Args:
        cfg: The config of a run.
        model: Its model, not wrapped. It has theta_0 afterwards.

    Raises:
        InputError: If no parameter came from a file.
    """
    source = source_of(cfg)
    ledger = LoadLedger(model)
    # Files are read once more where the model is initialised by itself before; what else is drawn does not matter.
    model.init_weights()  # type: ignore[operator]
    if source == cfg.get('load_from'):
        checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
        state = checkpoint.get('state_dict', checkpoint)
        state = {name.removeprefix('module.'): value for name, value in state.items()}
        load_state_dict(model, state, strict=False, logger='silent')
    ledger.close()
    params = [name for name, p in model.named_parameters() if p in ledger.delivered]
    if not params:
        raise InputError(
            f'{source} delivered no weight of the model, so there is nothing to compare with',
            'the names of its tensors are other ones: --pretrained FILE finds their prefix and says what it found',
        )
    owners = {name.rpartition('.')[0] for name in params}
    buffers = [name for name, _ in model.named_buffers() if name.rpartition('.')[0] in owners]
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    return Origin(state, params, [name for name in buffers if name in state], source)


def file_of(source: str) -> str | None:
    """The file on this machine behind the source, once it was loaded."""
    return local_file(plain_address(source))


def plain_name(name: str) -> str:
    """The name that a parameter has without LoRA."""
    return _PARAMETRIZED.sub(r'.\1', name)
