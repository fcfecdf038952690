"""Stratified folds: a partition, balanced, and the same for everybody."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olor_mm.datasets._folds import check_folds, stratified_folds

FOLDERS = st.dictionaries(
    st.sampled_from([f'{domain}/{name}' for domain in ('photo', 'sketch', 'Real World') for name in ('dog', 'house')]),
    st.sets(st.text('abc019_-é', min_size=1, max_size=6), min_size=1, max_size=25),
    min_size=1,
)
NUMBERS = st.integers(2, 7)
SEEDS = st.integers(-3, 2**40)


def paths_of(folders: dict[str, set[str]]) -> list[str]:
    return [f'{folder}/{name}.jpg' for folder, names in folders.items() for name in sorted(names)]


@given(FOLDERS, NUMBERS, SEEDS)
def test_every_image_is_in_one_fold_and_folds_are_of_equal_size(
    folders: dict[str, set[str]], num_folds: int, seed: int
) -> None:
    folds = stratified_folds(paths_of(folders), num_folds, seed)
    assert set(folds) == set(paths_of(folders))
    for folder, names in folders.items():
        sizes = [sum(folds[f'{folder}/{name}.jpg'] == fold for name in names) for fold in range(num_folds)]
        assert sum(sizes) == len(names)
        assert max(sizes) - min(sizes) <= 1


@given(FOLDERS, NUMBERS, SEEDS, st.randoms(use_true_random=False))
def test_neither_order_nor_other_folders_matter(
    folders: dict[str, set[str]], num_folds: int, seed: int, shuffler: random.Random
) -> None:
    paths = paths_of(folders)
    folds = stratified_folds(paths, num_folds, seed)
    shuffler.shuffle(paths)
    assert stratified_folds(paths, num_folds, seed) == folds
    for folder, names in folders.items():
        alone = stratified_folds(paths_of({folder: names}), num_folds, seed)
        assert all(folds[path] == fold for path, fold in alone.items())


def test_folds_stay_what_they_are() -> None:
    """A change here moves images between the training and test parts of everybody's runs."""
    folds = stratified_folds([f'photo/dog/{number}.jpg' for number in range(10)], 5, seed=0)
    assert ''.join(str(folds[f'photo/dog/{number}.jpg']) for number in range(10)) == '4030122314'


def test_another_seed_gives_other_folds() -> None:
    paths = [f'photo/dog/{number}.jpg' for number in range(50)]
    assert len({tuple(stratified_folds(paths, 5, seed).values()) for seed in range(20)}) == 20


def test_no_fold_is_always_the_large_one() -> None:
    """Of strata with one image over, each fold takes some."""
    first = [
        stratified_folds([f'photo/class_{number}/1.jpg'], 5)[f'photo/class_{number}/1.jpg'] for number in range(100)
    ]
    assert set(first) == set(range(5))


def test_an_image_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'photo/dog' is listed twice"):
        stratified_folds(['photo/dog/1.jpg', 'photo/dog/1.jpg'], 2)


@pytest.mark.parametrize(
    ('numbers', 'message'),
    [
        ((1, 0, 0), r'num_folds=1 must be at least 2'),
        ((0, 0, 0), r'num_folds=0 must be at least 2'),
        ((5, 5, 0), r'fold=5 does not exist.*0 to 4'),
        ((5, -1, 0), r'fold=-1 does not exist'),
        ((5.0, 0, 0), r'num_folds=5.0 must be a whole number'),
        ((5, '0', 0), r"fold='0' must be a whole number"),
        ((5, 0, None), r'seed=None must be a whole number'),
        ((5, True, 0), r'fold=True must be a whole number'),
    ],
)
def test_numbers_that_cannot_be(numbers: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_folds(*numbers)
