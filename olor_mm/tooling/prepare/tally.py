"""Counts a data set's images as its reader gives them, and compares the counts with the published ones."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .findings import Findings
from .records import Record
from .specs import Spec

__all__ = ['Tally', 'compare', 'count']


@dataclass
class Tally:
    """What was counted.

    Args:
        parts: Images of every split or domain.
        classes: Images of every (split or domain, class).
        files: The images that are there, each once.
    """

    parts: Counter[str] = field(default_factory=Counter)
    classes: Counter[tuple[str, int]] = field(default_factory=Counter)
    files: list[Record] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many images there are."""
        return self.parts.total()


def count(root: Path, spec: Spec, findings: Findings) -> Tally:
    """Read a data set and see that each of its files is there, once, and not empty.

    Args:
        root: The folder that holds it.
        spec: What it is.
        findings: Gets the problems.
    """
    tally, seen, shared = Tally(), dict[str, str](), list[str]()
    for record in spec.records(root, findings):
        tally.parts[record.part] += 1
        if spec.has_labels:
            if not 0 <= record.label < spec.classes:
                findings.problem('bad lines', f'{record.path or record.part}: class {record.label} does not exist')
            tally.classes[record.part, record.label] += 1
        if not record.path:
            continue
        if record.path in seen:
            if seen[record.path] == record.part:
                findings.problem('listed twice', f'{record.path} in {record.part}')
            else:
                shared.append(f'{record.path} in {seen[record.path]} and {record.part}')
            continue
        seen[record.path] = record.part
        there = [_is_there(root, name, findings) for name in (record.path, record.mask) if name]
        if all(there):
            tally.files.append(record)
    if shared:
        findings.notes.append(f'{len(shared):,} images are in more than one {spec.part}, the first: {shared[0]}')
    return tally


def compare(tally: Tally, spec: Spec, findings: Findings) -> None:
    """Compare the counts with the published ones: of every split or domain, of the whole, of every class."""
    expected = {part: number for part, number in spec.parts.items() if part not in spec.optional or tally.parts[part]}
    for part in spec.optional - expected.keys():
        findings.notes.append(f'{part}: not there; it is optional')
    for part, number in expected.items():
        findings.count(f'images of {part}', tally.parts[part], number)
    findings.count('images in all', tally.total, sum(expected.values()))
    if not spec.has_labels:
        return
    for part in expected:
        if tally.parts[part]:
            there = sum(tally.classes[part, label] > 0 for label in range(spec.classes))
            findings.count(f'classes of {part}', there, spec.classes)
            least, label = min((tally.classes[part, label], label) for label in range(spec.classes))
            if least:
                findings.at_least(f'images of class {label} of {part}', least, spec.class_minimum.get(part, 1))


def _is_there(root: Path, name: str, findings: Findings) -> bool:
    try:
        status = os.stat(os.path.join(root, name))
    except FileNotFoundError:
        findings.problem('missing files', name)
        return False
    except OSError as error:  # a link that leads in a circle, a name too long, a folder that may not be entered
        findings.problem('missing files', f'{name}: {error.strerror}')
        return False
    if not stat.S_ISREG(status.st_mode):
        findings.problem('missing files', f'{name} is no file')
    elif not status.st_size:
        findings.problem('corrupt images', f'{name}: empty, 0 bytes')
    return stat.S_ISREG(status.st_mode) and status.st_size > 0
