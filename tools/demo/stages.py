"""Stages that are done once: a stamp says from which inputs, so that a second run reuses them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any


class Stage:
    """A folder for one step of the demo, with a stamp of what went into it.

    A stage is in one of three states: absent (or made from other inputs: it is then removed), begun, done. A stage
    that was begun keeps its files, so that training can go on from its last checkpoint.

    Args:
        folder: Where the stage puts everything it makes.
        inputs: Whatever the result depends on, as JSON data; the fingerprint of an earlier stage for what it made.
    """

    def __init__(self, folder: Path, **inputs: Any) -> None:
        self.folder = folder
        text = json.dumps(inputs, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    @property
    def done(self) -> bool:
        """Whether the stage was finished from these inputs."""
        return self._read('done.json') is not None and self._is_ours()

    @property
    def result(self) -> Any:
        """What :meth:`finish` was given."""
        return self._read('done.json')['result']

    def begin(self) -> None:
        """Makes the folder; what other inputs left in it goes."""
        if self.folder.exists() and not self._is_ours():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write('begun.json', dict(fingerprint=self.fingerprint))

    def finish(self, result: Any = None) -> None:
        """Marks the stage as done and keeps its result, JSON data."""
        self._write('done.json', dict(result=result))

    def _is_ours(self) -> bool:
        return (self._read('begun.json') or {}).get('fingerprint') == self.fingerprint

    def _read(self, name: str) -> dict | None:
        path = self.folder / name
        return json.loads(path.read_text()) if path.is_file() else None

    def _write(self, name: str, content: dict) -> None:
        # A Ctrl-C between the two leaves the old file or the new one, never half of one.
        temporary = self.folder / f'{name}.tmp'
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self.folder / name)


def digest(*files: Path) -> str:
    """A fingerprint of the contents of files."""
    return hashlib.sha256(b'\0'.join(file.read_bytes() for file in files)).hexdigest()
