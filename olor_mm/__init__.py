"""olor_mm: fine-tuning that keeps what pre-training learned (OLOR, AAAI 2024).

``import olor_mm`` is light: it loads neither torch nor OpenMMLab. When MMEngine is already loaded, as it is
wherever a config names ``custom_imports=dict(imports=['olor_mm'])``, the MMEngine parts are registered too.
"""

import sys
from difflib import get_close_matches
from pathlib import Path

from .version import __version__

__all__ = ['__version__', 'cfg']


def cfg(name: str) -> str:
    """Absolute path of a config that olor_mm ships, from a checkout as from an installed wheel.

    An old-style config inherits with it from anywhere: ``_base_ = [__import__('olor_mm').cfg('olor_x.py')]``.

    Args:
        name: File below ``configs/``, such as ``'olor_maskrcnn_convnext.py'`` or ``'classification/x.py'``; the ``.py``
            may be left out, and so may the folder where no other has a file of that name.

    Raises:
        FileNotFoundError: If there is no such config; the message names those that are alike, or all.
        ValueError: If several folders have one of that name; the message lists them.
    """
    package = Path(__file__).resolve().parent
    roots = [root for root in (package / '.mim' / 'configs', package.parent / 'configs') if root.is_dir()]
    file = name if name.endswith('.py') else f'{name}.py'
    known: set[str] = set()
    for root in roots:
        if (root / file).is_file():
            return str(root / file)
        here = {path.relative_to(root).as_posix() for path in root.rglob('*.py')}
        found = sorted(path for path in here if path.rpartition('/')[2] == file)
        if len(found) == 1:
            return str(root / found[0])
        if found:
            raise ValueError(f'olor_mm ships several configs {name!r}, say which: {", ".join(found)}')
        known |= here
    raise FileNotFoundError(_no_such_config(name, file, known))


def _no_such_config(name: str, file: str, known: set[str]) -> str:
    wanted = file.rpartition('/')[2]
    names = {path.rpartition('/')[2] for path in known}
    near = [wanted] if wanted in names else get_close_matches(wanted, names, n=3)
    alike = sorted(path for path in known if path.rpartition('/')[2] in near)
    if alike:
        return f'olor_mm ships no config {name!r}; did you mean {", ".join(alike)}?'
    return f'olor_mm ships no config {name!r}; it ships: {", ".join(sorted(known)) or "none"}'


if 'mmengine' in sys.modules:
    from . import engine as engine
