"""The images of some domains of a data set, as that shares them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from olor_mm.registry import DATASETS

from ._chosen import Chosen

__all__ = ['DomainSubset']


@DATASETS.register_module()
class DomainSubset(Chosen):
    """A data set without the images of other domains, and, where that is wanted, with a part of the others.

    Unlike the options ``train_domains`` and ``test_domains`` of :class:`DomainDataset` it leaves alone how domains are
    shared out: what is a test image in all of the set is one here.

    Args:
        dataset: The data set, whose samples say their ``domain``, or its config.
        domains: Those that stay.
        images: At most so many images, spread evenly over all there are. Defaults to None: all.
        test_mode: Whether a pipeline that gives nothing is an error. Defaults to None: what the data set does.
        lazy_init: Whether the samples are looked through only when they are asked for. Defaults to False.

    Raises:
        ValueError: If a domain has no image, or ``images`` is no number above 0.
        TypeError: If it is no data set.

    Example:
        >>> dataset = dict(type='olor_mm.DomainSubset', dataset=dict(type='olor_mm.PACS', ...), domains=['photo'])
    """

    def __init__(
        self,
        dataset: Any,
        domains: Sequence[str],
        images: int | None = None,
        test_mode: bool | None = None,
        lazy_init: bool = False,
    ) -> None:
        self.domains = [domains] if isinstance(domains, str) else list(domains)
        if images is not None and (not isinstance(images, int) or isinstance(images, bool) or images < 1):
            raise ValueError(f'DomainSubset.images={images!r} must be a whole number of 1 or more, or None for all')
        self.images = images
        super().__init__(dataset, test_mode, lazy_init)

    def choose(self, labels: list[int]) -> list[int]:
        """Those of the domains."""
        domains = [self.dataset.get_data_info(index).get('domain') for index in range(len(labels))]
        absent = [domain for domain in self.domains if domain not in domains]
        if absent or not self.domains:
            there = ', '.join(sorted({str(domain) for domain in domains}))
            raise ValueError(
                f'DomainSubset.domains={self.domains!r}: {type(self.dataset).__name__} has no image of '
                f'{", ".join(map(repr, absent)) or "none"}; its domains are {there}'
            )
        found = [index for index, domain in enumerate(domains) if domain in self.domains]
        count = len(found) if self.images is None else min(self.images, len(found))
        return [found[i * len(found) // count] for i in range(count)]

    def __repr__(self) -> str:
        return f'{type(self).__name__} of {", ".join(self.domains)}, {len(self)} samples of\n{self.dataset!r}'
