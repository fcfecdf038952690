"""Data sets of several domains: which domains train, which test, and how a domain in both is shared out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ._base import CheckedDataset
from ._errors import DatasetLayoutError
from ._files import check_choice, find_root, folders, images, some
from ._folds import check_folds, stratified_folds

__all__ = ['DomainDataset']


class DomainDataset(CheckedDataset):
    """Images in ``<domain>/<class>/<image>``, of which some domains train and some test.

    A domain that is only in ``train_domains`` gives all of its images to ``'train'``; one that is only in
    ``test_domains`` gives all to ``'test'``, as in leave-one-domain-out; a domain in both is shared out by folds that
    are stratified by domain and class. The same arguments with another ``split`` give disjoint parts that together
    are everything.

    Args:
        data_root: The folder that holds the data set.
        split: ``'train'`` or ``'test'``. Defaults to ``'train'``.
        train_domains: The domains to train on. Defaults to None, all.
        test_domains: The domains to test on. Defaults to None, all.
        folds: How a domain in both is shared out: ``'stratified'``. Defaults to ``'stratified'``.
        num_folds: How many folds, at least 2. Defaults to 5.
        fold: Which fold is the test part, from 0 to ``num_folds - 1``. Defaults to 0.
        seed: Another seed gives other folds. Defaults to 0.
        **kwargs: Arguments of :class:`CheckedDataset`.

    Raises:
        ValueError: If an option's value does not exist, or if files are not as expected (``DatasetLayoutError``).
        FileNotFoundError: If a file or folder is missing.
    """

    #: The domains, and the spellings in which their folders occur.
    DOMAINS: ClassVar[dict[str, tuple[str, ...]]]
    #: How many images each domain has, as published.
    COUNTS: ClassVar[dict[str, int]]
    #: Where the domains may lie, relative to ``data_root``.
    FOLDERS: ClassVar[tuple[str, ...]] = ('',)
    LAYOUT: ClassVar[str]
    #: Ways to share a domain out.
    FOLDS: ClassVar[tuple[str, ...]] = ('stratified',)

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        train_domains: Sequence[str] | str | None = None,
        test_domains: Sequence[str] | str | None = None,
        folds: str = 'stratified',
        num_folds: int = 5,
        fold: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_choice('folds', folds, self.FOLDS)
        check_folds(num_folds, fold, seed)
        self.folds, self.num_folds, self.fold, self.seed = folds, num_folds, fold, seed
        self.train_domains = self._domains('train_domains', train_domains)
        self.test_domains = self._domains('test_domains', test_domains)
        super().__init__(data_root, split, **kwargs)

    def read(self) -> list[dict[str, Any]]:
        """One dict for every image of the split; ``domain`` names its domain."""
        root = self.find_root()
        domains = self.domains_of_split()
        if not domains:
            raise ValueError(f'split={self.split!r} has no domain: name some of {", ".join(self.DOMAINS)}')
        samples = []
        for domain in domains:
            folder = self.find_domain(root, domain)
            for path, label in self.read_domain(folder, domain):
                # The part behind the domain: its folder may be spelled otherwise than the domain.
                file = folder / path.partition('/')[2]
                samples.append({'img_path': str(file), 'gt_label': label, 'domain': domain})
        return samples

    def domains_of_split(self) -> tuple[str, ...]:
        """The domains that give images to the split."""
        return self.test_domains if self.split == 'test' else self.train_domains

    def read_domain(self, folder: Path, domain: str) -> list[tuple[str, int]]:
        """The images of one domain that belong to the split.

        Args:
            folder: The domain's folder.
            domain: Its name.

        Returns:
            For each image ``'<domain>/<class>/<image>'`` and its label.
        """
        found = self.scan(folder, domain)
        if not self.is_shared(domain):
            return found
        folds = stratified_folds((path for path, _ in found), self.num_folds, self.seed)
        test = self.split == 'test'
        return [(path, label) for path, label in found if (folds[path] == self.fold) == test]

    def scan(self, folder: Path, domain: str) -> list[tuple[str, int]]:
        """All images of a domain with their labels, in the order of classes and names.

        Args:
            folder: The domain's folder.
            domain: Its name.

        Raises:
            DatasetLayoutError: If the folders in it are not the classes, or if a class has no or too few images.
        """
        classes, wanted = self.METAINFO['classes'], self.CLASSES
        self.check_classes(folder)
        found = []
        for label, name in enumerate(classes):
            if name not in wanted:
                continue
            files = images(folder / name)
            if not files:
                raise DatasetLayoutError(f'the class folder {folder / name} holds no image')
            if self.is_shared(domain) and len(files) < self.num_folds:
                raise DatasetLayoutError(
                    f'{folder / name} holds {len(files)} images, too few for num_folds={self.num_folds}: choose fewer '
                    'folds'
                )
            found += [(f'{domain}/{name}/{file}', label) for file in files]
        if len(wanted) == len(classes):
            self.warn_unless(str(folder), len(found), self.COUNTS[domain])
        return found

    def is_shared(self, domain: str) -> bool:
        """Whether a domain both trains and tests.

        Args:
            domain: Its name.
        """
        return domain in self.train_domains and domain in self.test_domains

    def find_root(self) -> Path:
        """The folder that holds the folders of the domains."""
        spellings = [spelling for domain in self.DOMAINS.values() for spelling in domain]
        return find_root(self.data_root, self.FOLDERS, spellings, self.LAYOUT)

    def find_domain(self, root: Path, domain: str) -> Path:
        """The folder of a domain, in whichever spelling.

        Args:
            root: The folder that holds it.
            domain: Its name.

        Raises:
            FileNotFoundError: If there is none.
            DatasetLayoutError: If there are several.
        """
        found = [root / spelling for spelling in self.DOMAINS[domain] if (root / spelling).is_dir()]
        if len({folder.resolve() for folder in found}) > 1:
            names = ' and '.join(repr(folder.name) for folder in found)
            raise DatasetLayoutError(f'{root} holds the domain {domain!r} more than once, as {names}: keep one')
        if found:
            return found[0]
        raise FileNotFoundError(
            f'the domain {domain!r} is missing: looked for {some(self.DOMAINS[domain])} in {root.absolute()}, which '
            f'holds {some(folders(root)) or "no folder"}\n'
            'put it there, or leave it out of train_domains and test_domains'
        )

    def extra_repr(self) -> list[str]:
        """What ``repr`` says besides numbers."""
        domains = f'train {", ".join(self.train_domains)}; test {", ".join(self.test_domains)}'
        return [*super().extra_repr(), f'Domains: \t{domains}']

    def check_classes(self, folder: Path) -> None:
        """See that the folders in a domain are the classes.

        Args:
            folder: The domain's folder.

        Raises:
            DatasetLayoutError: If not; the message lists the difference.
        """
        found = folders(folder)
        missing = [name for name in self.CLASSES if name not in found]
        surplus = [name for name in found if name not in self.METAINFO['classes']]
        if missing or surplus:
            raise DatasetLayoutError(
                f'the folders in {folder} are not the {self.NUM_CLASSES} classes of {type(self).__name__}\n'
                f'missing: {some(missing) or "none"}\nnot a class: {some(surplus) or "none"}'
            )

    def _domains(self, option: str, given: Sequence[str] | str | None) -> tuple[str, ...]:
        """The names of domains, whatever spelling was given, in the order of :attr:`DOMAINS`."""
        if given is None:
            return tuple(self.DOMAINS)
        named = (given,) if isinstance(given, str) else tuple(given)
        names = {spelling: domain for domain, spellings in self.DOMAINS.items() for spelling in (domain, *spellings)}
        for name in named:
            if name not in names:
                raise ValueError(f'{option} names {name!r}; the domains are {", ".join(map(repr, self.DOMAINS))}')
        chosen = [names[name] for name in named]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f'{option}={named!r} names a domain twice')
        return tuple(domain for domain in self.DOMAINS if domain in chosen)
