"""What the checks found: problems by kind, and notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ['Findings']


@dataclass
class Findings:
    """Collects what is wrong with a data set and what is worth knowing.

    Args:
        accept_counts: Whether other counts than the published ones are a note, not a problem. Defaults to False.
        problems: Texts by kind. Defaults to none.
        notes: What is no problem. Defaults to none.
        accepted: How many counts differ and were accepted. Defaults to 0.
    """

    accept_counts: bool = False
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    accepted: int = 0

    def problem(self, kind: str, text: str) -> None:
        """Add a problem; ``kind`` is what it is listed under, such as ``'missing files'``."""
        self.problems.setdefault(kind, []).append(text)

    def count(self, what: str, found: int, expected: int) -> None:
        """Compare a count with the published one."""
        if found != expected:
            self._other_count(f'{what}: {found:,}, published are {expected:,}')

    def at_least(self, what: str, found: int, least: int) -> None:
        """Compare a count with the least that the published set has."""
        if found < least:
            self._other_count(f'{what}: {found:,}, published are at least {least:,}')

    def _other_count(self, text: str) -> None:
        if self.accept_counts:
            self.accepted += 1
            self.notes.append(f'{text}; accepted with --subset')
        else:
            self.problem('wrong counts', text)

    @property
    def total(self) -> int:
        """How many problems there are."""
        return sum(map(len, self.problems.values()))

    def lines(self) -> Iterator[str]:
        """Every problem, as ``'<kind>: <text>'``."""
        for kind, texts in self.problems.items():
            for text in texts:
                yield f'{kind}: {text}'
