"""Results that are there already: each in a file of its own, under a digest of all that it was computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process

from ... import __version__
from ..incremental.results import write_json
from .progress import Progress

__all__ = ['Kept', 'digest']


def digest(*told: object) -> str:
    """SHA-256 of anything that JSON, or ``str``, can say."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    # Of a class or a function its name, and not where it lies in this process.
    return str(getattr(value, '__qualname__', value))


class Kept:
    """The results in a folder.

    Args:
        folder: Of the tool's output; results are in ``results`` below it.
        progress: Told of each.
        fresh: Whether all is computed anew. Defaults to False.
    """

    def __init__(self, folder: Path, progress: Progress, fresh: bool = False) -> None:
        self.folder, self._progress, self._fresh = folder / 'results', progress, fresh

    def get(self, what: str, inputs: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result, from the folder or computed now; all ranks must call this.

        Args:
            what: In words, for the progress.
            inputs: All that the result depends on.
            compute: Makes it: what JSON can say.
        """
        key = digest(__version__, inputs)
        file = self.folder / f'{key[:24]}.json'
        found = [self._read(file, key)] if is_main_process() else [None]
        # Not every machine of a run sees the folder.
        broadcast_object_list(found)
        if found[0] is not None:
            self._progress.known()
            return found[0]
        with self._progress.part(what):
            result = compute()
            if is_main_process():
                write_json(file, {'what': what, 'key': key, 'result': result})
        # As it will be read the next time.
        plain: dict[str, Any] = json.loads(json.dumps(result))
        return plain

    def _read(self, file: Path, key: str) -> dict[str, Any] | None:
        if self._fresh or not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return None
        whole = isinstance(content, dict) and content.get('key') == key and isinstance(content.get('result'), dict)
        return content['result'] if whole else None
