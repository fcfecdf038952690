"""Several tasks on one frozen backbone: what lies in front of block M is computed once for all of them."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .dtl import CHILD, side_network, stages_of
from .dtl_side import CARRIED, Carried, SideNetwork, carried
from .method import child

__all__ = ['DTLGroup']


class DTLGroup(nn.Module):
    """Models of several tasks that were tuned by DTL from the same backbone, for inference.

    The backbone is in memory once. Its blocks up to the smallest M of the tasks run once for a batch of images; from
    there on the batch holds the streams of all tasks one after the other, each with its own side network. Then each
    task's neck and head get their features. The models become parts of the group and cannot be used without it.

    Args:
        models: Name of a task to its model. More come by :meth:`add`, so that no two backbones but one and the next
            are ever in memory.
        part: Path of the backbone in each model. Defaults to 'backbone'.

    Raises:
        ValueError: If a model is not tuned by DTL, or its backbone is not that of the others.

    Example:
        >>> group = DTLGroup({'birds': birds, 'cars': cars})
        >>> group(images, mode='tensor')['birds']
    """

    def __init__(self, models: Mapping[str, nn.Module] = {}, part: str = 'backbone') -> None:
        super().__init__()
        self.part = part
        self.names: list[str] = []
        self.models = nn.ModuleList()
        self.networks = nn.ModuleList()
        self.trunk: nn.Module | None
        self.trunk = None
        self._grid: tuple[int, int] | None = None
        self._handles: list[Any] = []
        #: Images that came in this call, and each task's features of them.
        self._seen: list[tuple[Tensor, list[Any]]] = []
        for name, model in models.items():
            self.add(name, model)

    def add(self, name: str, model: nn.Module) -> None:
        """Take a model in as the task ``name``.

        Raises:
            ValueError: If there is such a task, or the model is none for this group.
        """
        if name in self.names:
            raise ValueError(f'DTLGroup: there is a task {name!r} already: {self.names}')
        backbone = child(model, self.part, f'DTLGroup: task {name!r}: part')
        network = side_network(backbone)
        if self.trunk is not None:
            _check_same(name, backbone, self.names[0], self.trunk)
        network.release()
        delattr(backbone, CHILD)
        path, _, last = self.part.rpartition('.')
        setattr(child(model, path, 'part'), last, _Features(self, len(self.names)))
        self.names.append(name)
        self.models.append(model)
        self.networks.append(network)
        if self.trunk is None:
            self.trunk = backbone
        self.eval()
        self._follow(self.trunk)

    def train(self, mode: bool = True) -> 'DTLGroup':
        """Stays in eval mode: what was tuned is tuned."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> dict[str, Any]:
        """What each task's model returns.

        Args:
            inputs: Images, as the models' data preprocessor gives them.
            data_samples: As for the models; each gets a copy. Defaults to None.
            mode: 'tensor' or 'predict'. Defaults to 'tensor'.
        """
        return self._each(lambda model: model(inputs, copy.deepcopy(data_samples), mode=mode))

    @torch.no_grad()
    def test_step(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Each task's predictions for a batch of a data loader."""
        return self._each(lambda model: model.test_step({**data, 'data_samples': copy.deepcopy(data['data_samples'])}))

    def _each(self, run: Any) -> dict[str, Any]:
        if self.trunk is None:
            raise ValueError('DTLGroup: there are no tasks: add some')
        self._seen = []
        try:
            return {name: run(model) for name, model in zip(self.names, self.models, strict=True)}
        finally:
            self._seen = []

    def features(self, x: Tensor, task: int) -> Any:
        """Of one task; those of the others are computed with them."""
        for seen, features in self._seen:
            if seen is x or (seen.shape == x.shape and torch.equal(seen, x)):
                return features[task]
        out = self.trunk(x)  # type: ignore[misc]
        features = [_share(out, i, len(self.names), len(x)) for i in range(len(self.names))]
        self._seen.append((x, features))
        return features[task]

    # ---------------------------------------------------------------- hooks

    def _side_networks(self) -> list[SideNetwork]:
        return [network for network in self.networks if isinstance(network, SideNetwork)]

    def _follow(self, trunk: nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        blocks = [block for stage in stages_of(trunk, 'DTLGroup') for block in stage.blocks]
        networks = self._side_networks()
        #: Index of a block to whether it is the first of its stage.
        self._firsts = {i: place[1] for network in networks for i, place in network.places.items()}
        self._branch = min(network.start_block for network in networks) - 1
        self._handles = [blocks[i].register_forward_hook(partial(self._after, i)) for i in self._firsts]
        patch_embed = getattr(trunk, 'patch_embed', None)
        if patch_embed is not None:
            self._handles.append(patch_embed.register_forward_hook(self._see_grid))

    def _see_grid(self, _: nn.Module, args: Any, out: Any) -> None:
        self._grid = (int(out[1][0]), int(out[1][1]))

    def _after(self, index: int, block: nn.Module, args: Any, out: Tensor) -> Tensor:
        """A hook on block ``index``, of all side networks; after the first that is injected at, the streams part."""
        x, networks = args[0], self._side_networks()
        count = len(networks)
        before = carried(index, x, args, self._firsts[index], self._grid)
        parted = index > self._branch
        streams = x.chunk(count) if parted else [x] * count
        states = [
            network.extract(index, stream, h) if index in network.places else None
            for network, stream, h in zip(networks, streams, before.h or [None] * count, strict=True)
        ]
        if index >= self._branch:
            outs = out.chunk(count) if parted else [out] * count
            out = torch.cat(
                [
                    network.inject(index, each, h, before.grid) if h is not None else each
                    for network, each, h in zip(networks, outs, states, strict=True)
                ]
            )
        setattr(out, CARRIED, Carried(index, states, before.grid))
        return out


class _Features(nn.Module):
    """Stands where a task's backbone stood."""

    def __init__(self, group: DTLGroup, task: int) -> None:
        super().__init__()
        # In a list, so that the group is no part of its part.
        self._group, self._task = [group], task

    def forward(self, x: Tensor) -> Any:
        return self._group[0].features(x, self._task)


def _share(out: Any, task: int, count: int, batch: int) -> Any:
    """A task's part of what the trunk returned; what it returned before the streams parted is everyone's."""
    if isinstance(out, (list, tuple)):
        return type(out)(_share(each, task, count, batch) for each in out)
    return out.chunk(count)[task] if len(out) == count * batch else out


def _check_same(name: str, backbone: nn.Module, other: str, trunk: nn.Module) -> None:
    what = f'DTLGroup: task {name!r} has another backbone than {other!r}'
    for option in ('out_indices', 'out_type', 'final_norm'):
        values = [getattr(each, option, None) for each in (backbone, trunk)]
        if str(values[0]) != str(values[1]):
            raise ValueError(f'{what}: {option} is {values[0]}, not {values[1]}')
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith(f'{CHILD}.')}
    theirs = trunk.state_dict()
    if type(backbone) is not type(trunk) or own.keys() != theirs.keys():
        raise ValueError(f'{what}: {type(backbone).__name__} has not the parameters of {type(trunk).__name__}')
    for key, value in own.items():
        if not torch.equal(value.to(theirs[key].device), theirs[key]):
            raise ValueError(
                f'{what}: {key!r} differs. Features are shared where the frozen weights are the same: load the same '
                'pre-trained weights into both, and train nothing of the backbone itself'
            )
