"""DomainSubset: the images of some domains, shared out as in the whole set."""

import pytest

from olor_mm.datasets import PACS, DomainSubset
from tests.test_tools._forgetting import write_images

DOMAINS = tuple(PACS.DOMAINS)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pacs')
    for number, domain in enumerate(DOMAINS):
        write_images(folder / domain, PACS.METAINFO['classes'], 5, seed=number)
    return str(folder)


def paths(data):
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


def test_it_shares_out_as_the_whole_set_does(root):
    parts = {split: PACS(root, split) for split in ('train', 'test')}
    for split, whole in parts.items():
        subsets = [paths(DomainSubset(whole, [domain])) for domain in DOMAINS]
        assert sorted(path for subset in subsets for path in subset) == sorted(paths(whole))
        assert all(domain in path for domain, subset in zip(DOMAINS, subsets, strict=True) for path in subset)
        assert len(subsets[0]) == 7 * (4 if split == 'train' else 1)
    assert DomainSubset(parts['train'], 'photo').metainfo == parts['train'].metainfo


def test_a_part_is_spread_evenly(root):
    whole = DomainSubset(PACS(root, 'train'), ['cartoon', 'sketch'])
    part = DomainSubset(PACS(root, 'train'), ['cartoon', 'sketch'], images=14)
    assert paths(part) == paths(whole)[::4]
    assert len({part.get_data_info(i)['gt_label'] for i in range(len(part))}) == 7
    assert paths(DomainSubset(PACS(root, 'train'), ['cartoon', 'sketch'], images=1000)) == paths(whole)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(domains=['foto']), "no image of 'foto'; its domains are art_painting, cartoon, photo, sketch"),
        (dict(domains=[]), 'its domains are'),
        (dict(domains=['photo'], images=0), 'images=0 must be'),
    ],
)
def test_what_cannot_be(root, options, message):
    with pytest.raises(ValueError, match=message):
        DomainSubset(PACS(root, 'train'), **options)
