"""The cells of the matrix: which versions are meant to work together, and what is run in each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ['ABSENT', 'CELLS', 'FORK', 'LEVELS', 'UPSTREAM', 'Cell', 'Level', 'cell_named']

#: Upstream's packages and the versions that we pin; mmcv apart, for it is compiled.
UPSTREAM = {'mmengine': '0.10.7', 'mmdet': '3.3.0', 'mmsegmentation': '1.2.2', 'mmpretrain': '1.2.0', 'mmcv': '2.1.0'}
#: The maintained fork: other distributions, the same import names.
FORK = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmcv': '2.3.6',
}
#: What the fork imports and upstream does not. imaug goes without its own requirements: it names two builds of opencv.
FORK_ALSO = ('imageio', 'scikit-image')
FORK_BARE = ('imaug',)


class Cell(NamedTuple):
    """One combination of versions.

    Attributes:
        name: What the command line and the results call it.
        python: Major and minor version.
        torch: Exact version.
        torchvision: The one that was released for this torch.
        numpy: Major version.
        fork: Whether the toolboxes are the onedl-* fork's.
        top: The highest level that makes sense: 'core' where the toolboxes do not take this torch.
        also: More requirements, where pip by itself would take something that does not go with the rest.
    """

    name: str
    python: str
    torch: str
    torchvision: str
    numpy: int
    fork: bool = False
    top: str = 'full'
    also: tuple[str, ...] = ()

    @property
    def family(self) -> dict[str, str]:
        return FORK if self.fork else UPSTREAM

    @property
    def family_name(self) -> str:
        return 'onedl-*' if self.fork else 'upstream'

    @property
    def engine(self) -> tuple[str, str]:
        """Distribution and version of MMEngine."""
        return next((name, version) for name, version in self.family.items() if name.endswith('mmengine'))


class Level(NamedTuple):
    """How much of a cell is installed, and which tests then run.

    Attributes:
        modules: What must import; see ``tools/check_env.py --need``.
        paths: What pytest is given.
        text: What the page says of it.
    """

    need: str
    paths: tuple[str, ...]
    text: str


_CORE = ('tests/test_rollback', 'tests/test_layers', 'tests/test_engine')
LEVELS = {
    'core': Level('core', _CORE, 'torch, MMEngine and timm; no mmcv and no toolbox'),
    'full': Level(
        'test',
        (
            *_CORE,
            'tests/test_configs',
            'tests/test_datasets',
            'tests/test_tools',
            'tests/test_inherit/test_styles.py',
            'tests/test_inherit/test_cfg.py',
        ),
        'mmcv compiled with its operators, mmdet, mmsegmentation and mmpretrain as well',
    ),
    'all': Level('test', ('tests',), 'as `full`, and every test there is: what CI runs'),
}

CELLS = (
    Cell('py311-torch211-numpy2', '3.11', '2.11.0', '0.26.0', 2),
    Cell('py310-torch211-numpy2', '3.10', '2.11.0', '0.26.0', 2),
    Cell('py312-torch211-numpy2', '3.12', '2.11.0', '0.26.0', 2),
    Cell('py310-torch211-numpy1', '3.10', '2.11.0', '0.26.0', 1),
    Cell('py310-torch25-numpy1', '3.10', '2.5.1', '0.20.1', 1),
    Cell('py311-torch25-numpy1', '3.11', '2.5.1', '0.20.1', 1),
    Cell('py311-torch25-numpy2', '3.11', '2.5.1', '0.20.1', 2),
    Cell('py312-torch25-numpy2', '3.12', '2.5.1', '0.20.1', 2),
    Cell('py310-torch21-numpy1', '3.10', '2.1.2', '0.16.2', 1),
    Cell('py311-torch21-numpy1', '3.11', '2.1.2', '0.16.2', 1),
    Cell('py312-torch215-numpy2', '3.12', '2.15.0', '0.29.2', 2, top='core'),
    Cell('py311-torch211-numpy2-onedl', '3.11', '2.11.0', '0.26.0', 2, fork=True),
    Cell('py312-torch211-numpy2-onedl', '3.12', '2.11.0', '0.26.0', 2, fork=True),
)

#: Combinations that cannot be, and why.
ABSENT = {
    'Python 3.12 with torch 2.1': 'torch has wheels for Python 3.12 from 2.2 on',
    'torch 2.1 with numpy 2': 'that torch was compiled against numpy 1 and cannot exchange arrays with numpy 2',
}


def cell_named(name: str) -> Cell:
    """The cell of this name.

    Raises:
        KeyError: If there is none.
    """
    return {cell.name: cell for cell in CELLS}[name]
