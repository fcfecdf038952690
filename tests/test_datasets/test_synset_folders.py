"""Folders by WordNet id, under the labels of a list."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from olor_mm.datasets import DatasetLayoutError, SynsetFolders


def make(root, *names):
    for name in names:
        (root / name).mkdir()
        for i in range(2):
            cv2.imwrite(str(root / name / f'{i}.png'), np.zeros((4, 4, 3), np.uint8))
    return str(root)


def labels(dataset):
    return [dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]


def test_imagenet(tmp_path):
    pytest.importorskip('timm')
    dataset = SynsetFolders(data_root=make(tmp_path, 'n01440764', 'n02106662', 'n15075141'))
    assert labels(dataset) == [0, 0, 235, 235, 999, 999]
    assert len(dataset.metainfo['classes']) == 1000
    assert 'toilet paper' in dataset.metainfo['classes'][999]


def test_tiny_imagenet(shared_data):
    pytest.importorskip('timm')
    dataset = SynsetFolders(data_root=str(shared_data / 'tiny_imagenet'), data_prefix='val', pipeline=[])
    # The names of the other sample begin with the label.
    known = {path.stem[4:]: int(path.stem[:3]) for path in (shared_data / 'imagenet_sample').glob('*.jpg')}
    found = {Path(dataset.get_data_info(i)['img_path']).parent.name: label for i, label in enumerate(labels(dataset))}
    assert len(found) == 200
    assert found == {synset: known[synset] for synset in found}


def test_of_a_list(tmp_path):
    (tmp_path / 'ids.txt').write_text('n3 chair\nn1 dog, domestic dog\n\nn2\n')
    (tmp_path / 'images').mkdir()
    root = make(tmp_path / 'images', 'n1', 'n2')
    dataset = SynsetFolders(str(tmp_path / 'ids.txt'), data_root=root)
    assert labels(dataset) == [1, 1, 2, 2]
    assert dataset.metainfo['classes'] == ('n3', 'n1', 'n2')


def test_refuses(tmp_path):
    (tmp_path / 'ids.txt').write_text('n1\nn2\n')
    (tmp_path / 'images').mkdir()
    root = make(tmp_path / 'images', 'n1', 'dogs')
    with pytest.raises(DatasetLayoutError, match=r'dogs are no WordNet ids of .*ids\.txt; folders must be named as n1'):
        SynsetFolders(str(tmp_path / 'ids.txt'), data_root=root)
    with pytest.raises(FileNotFoundError, match='synsets='):
        SynsetFolders(str(tmp_path / 'no.txt'), data_root=root)
    (tmp_path / 'ids.txt').write_text('n1\nn1\n')
    with pytest.raises(ValueError, match='each once'):
        SynsetFolders(str(tmp_path / 'ids.txt'), data_root=root)
