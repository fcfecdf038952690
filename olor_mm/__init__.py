"""olor_mm: fine-tuning that keeps what pre-training learned (OLOR, AAAI 2024).

``import olor_mm`` is light: it loads neither torch nor OpenMMLab. When MMEngine is already loaded, as it is
wherever a config names ``custom_imports=dict(imports=['olor_mm'])``, the MMEngine parts are registered too.
"""

import sys
from pathlib import Path

from .version import __version__

__all__ = ['__version__', 'cfg']


def cfg(name: str) -> str:
    """Absolute path of a config that olor_mm ships, from a checkout as from an installed wheel.

    An old-style config inherits with it from anywhere: ``_base_ = [__import__('olor_mm').cfg('olor_x.py')]``.

    Args:
        name: File name below ``configs/``, such as ``'olor_maskrcnn_convnext.py'``; the ``.py`` may be left out.

    Raises:
        FileNotFoundError: If there is no such config; the message lists those that exist.
    """
    package = Path(__file__).resolve().parent
    roots = [root for root in (package / '.mim' / 'configs', package.parent / 'configs') if root.is_dir()]
    file = name if name.endswith('.py') else f'{name}.py'
    for root in roots:
        if (root / file).is_file():
            return str(root / file)
    known = sorted({path.relative_to(root).as_posix() for root in roots for path in root.rglob('*.py')})
    raise FileNotFoundError(f'olor_mm ships no config {name!r}; it ships: {", ".join(known) or "none"}')


if 'mmengine' in sys.modules:
    from . import engine as engine
