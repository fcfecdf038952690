"""Many random numbers out of few that are drawn: drawing is what takes longest on a CPU."""

import torch
from torch import Tensor

__all__ = ['Numbers']

# Elements that have their own numbers; the next block begins one later among these, and adds one of its own to all.
_WIDTH = 2**13
# Blocks that are drawn for at a time.
_GROUP = 2**12


class Numbers:
    """A sequence of random integers, the same in however many parts it is taken.

    Each is the exclusive or of two that are drawn, no two of them with both in common. So any two are independent, and
    means, variances and covariances are those of independent numbers.

    Args:
        generator: What they are drawn from, on the device where they are needed.
        bits: Each is in [0, 2**bits); at most 63.
    """

    def __init__(self, generator: torch.Generator, bits: int) -> None:
        self.device = generator.device
        self._generator = generator
        self._bits = bits
        self._row = self._draw(_WIDTH)
        self._own = self._row[:0]
        self._taken = 0

    def room(self, most: int) -> Tensor:
        """Memory for :meth:`take`, of at most so many at a time."""
        return torch.empty(-(-most // _WIDTH) + 1, _WIDTH, dtype=torch.int64, device=self.device)

    def take(self, number: int, room: Tensor) -> Tensor:
        """The next ones, int64 [number], in ``room``."""
        first = self._taken // _WIDTH
        skipped = self._taken - first * _WIDTH
        blocks = -(-(skipped + number) // _WIDTH)
        while len(self._own) < first + blocks:
            more = self._draw(2 * _GROUP)
            self._row = torch.cat([self._row, more[:_GROUP]])
            self._own = torch.cat([self._own, more[_GROUP:]])
        self._taken += number
        shifted = self._row[first:].as_strided((blocks, _WIDTH), (1, 1))
        torch.bitwise_xor(shifted, self._own[first : first + blocks, None], out=room[:blocks])
        return room.view(-1)[skipped : skipped + number]

    def _draw(self, number: int) -> Tensor:
        drawn = torch.empty(number, dtype=torch.int64, device=self.device)
        return drawn.random_(generator=self._generator).bitwise_and_(2**self._bits - 1)
