"""docs/visualize.md: its files and commands, in this process, with a smaller model on images made from nothing."""

import re
import shlex

import numpy as np
import pytest

pytest.importorskip('matplotlib')
pytest.importorskip('plotly')
pytest.importorskip('sklearn')

import torch
from mmengine.config import Config
from PIL import Image

from olor_mm.datasets import PACS
from olor_mm.tooling import train
from olor_mm.tooling.visualize import visualize

from ._pages import DOCS, blocks, text_of

PAGE = 'visualize'
SMALL = [
    ("arch='deit-tiny'", 'arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)'),
    ('in_channels=192', 'in_channels=16'),
    ('img_size=112', 'img_size=32'),
    ('scale=112', 'scale=32'),
    ('num_workers=1', 'num_workers=0'),
    ('interval=5', 'interval=1'),
]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The folder of a reader, with images and pre-trained weights."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for domain in PACS.DOMAINS:
        for name in PACS.METAINFO['classes']:
            folder = tmp_path / 'data' / 'pacs' / domain / name
            folder.mkdir(parents=True)
            for i in range(10):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f'{i}.jpg')
    return tmp_path


def short(text):
    """The same with a model of hundreds of weights."""
    for long, replaced in SMALL:
        text = text.replace(long, replaced)
    return text


def weights(config):
    """What stands for the published checkpoint."""
    from olor_mm.tooling.visualize.weights import build_model

    model = build_model(Config.fromfile(config))
    return {'state_dict': {name: value for name, value in model.state_dict().items() if 'head' not in name}}


def run(command):
    """Run a command of the page."""
    words = shlex.split(command)
    assert words[0] == 'python'
    options = ['--max-samples', '56', '--perplexity', '5', '--num-workers', '0', '--device', 'cpu']
    if words[1] == 'tools/train.py':
        train(words[2:])
    elif words[2] == 'tsne':
        visualize([*words[2:], *options])
    elif words[2] == 'ausuc' and '--logits' not in words:
        visualize([*words[2:], *options[4:]])
    else:
        visualize(words[2:])


def test_page(reader, capsys):
    torch.manual_seed(0)
    done = set()
    for block in blocks(PAGE):
        if block.kind == 'file':
            (reader / block.name).write_text(short(block.text))
            if not (reader / 'deit_tiny.pth').exists():
                torch.save(weights(block.name), 'deit_tiny.pth')
        elif block.kind == 'run':
            for command in block.text.replace('\\\n', ' ').splitlines():
                run(command)
        else:
            assert block.kind == 'python', f'{block} says neither what it is nor why it is not run'
            exec(compile(block.text, block.name, 'exec'), {})
        done.add(block.kind)
    assert done == {'file', 'run', 'python'}
    made = {file.stem for file in (reader / 'work_dirs' / 'figures').glob('*.png')}
    assert made == {'levels', 'paper', 'discrepancy', 'curves', 'tsne', 'domains', 'ausuc', 'again', 'loss'}


def test_pictures_are_there_and_small():
    named = re.findall(r'!\[[^]]+\]\((images/visualize_\w+\.png)\)', text_of(PAGE))
    assert len(named) == 6
    for name in named:
        assert (DOCS / name).stat().st_size < 150_000
        with Image.open(DOCS / name) as picture:
            assert picture.width > 600
