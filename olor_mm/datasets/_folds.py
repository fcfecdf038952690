"""Stratified folds that are the same on every machine, with every version of NumPy and whatever the order on disk."""

from collections.abc import Iterable
from hashlib import sha256

__all__ = ['check_folds', 'stratified_folds']


def stratified_folds(paths: Iterable[str], num_folds: int, seed: int = 0) -> dict[str, int]:
    """Share images out to folds, evenly within every stratum, which is the folder that an image lies in.

    The images of a stratum are put in the order of a hash of the seed and their path, then dealt like cards. A
    stratum's folds depend on its own images alone, so that adding a domain moves no image of another one. Which fold
    takes the first card also follows from a hash: else fold 0 would be the largest in every stratum.

    Args:
        paths: Paths with forward slashes relative to the data set, such as ``'photo/dog/056_0001.jpg'``.
        num_folds: How many folds, at least 2.
        seed: Another seed gives other folds. Defaults to 0.

    Returns:
        The fold of every path, from 0 to ``num_folds - 1``, in the order given. Within a stratum
        the sizes of two folds differ by 1 at most.

    Raises:
        ValueError: If a path occurs twice, or for a ``num_folds`` or ``seed`` that cannot be.

    Example:
        >>> folds = stratified_folds(['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg'], num_folds=2)
        >>> folds['a/1.jpg'] != folds['a/2.jpg']
        True
    """
    check_folds(num_folds, 0, seed)
    paths = list(paths)
    strata: dict[str, list[str]] = {}
    for path in paths:
        strata.setdefault(path.rpartition('/')[0], []).append(path)
    folds: dict[str, int] = {}
    for stratum, members in strata.items():
        if len(set(members)) < len(members):
            raise ValueError(f'an image of {stratum!r} is listed twice: every path must occur once')
        first = int.from_bytes(_digest(seed, f'{stratum}/'), 'big')
        # Equal hashes are out of the question, yet the path behind them keeps the order total.
        for position, path in enumerate(sorted(members, key=lambda path: (_digest(seed, path), path))):
            folds[path] = (first + position) % num_folds
    return {path: folds[path] for path in paths}


def check_folds(num_folds: int, fold: int, seed: int) -> None:
    """See that the numbers that choose a fold can be.

    Args:
        num_folds: How many folds, at least 2.
        fold: The fold wanted, from 0 to ``num_folds - 1``.
        seed: Any whole number.

    Raises:
        ValueError: If not; the message names the option, its value and what it may be.
    """
    for option, value in (('num_folds', num_folds), ('fold', fold), ('seed', seed)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f'{option}={value!r} must be a whole number')
    if num_folds < 2:
        raise ValueError(f'num_folds={num_folds} must be at least 2: one fold tests, the others train')
    if not 0 <= fold < num_folds:
        raise ValueError(f'fold={fold} does not exist: with num_folds={num_folds} the folds are 0 to {num_folds - 1}')


def _digest(seed: int, text: str) -> bytes:
    return sha256(f'{seed}:{text}'.encode()).digest()
