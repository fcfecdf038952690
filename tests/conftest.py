"""Shared fixtures: the real data, and a seed for every test."""

import os
import signal
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]


# Small tensors: more threads cost more than they save, all the more where tests share the cores with other work.
torch.set_num_threads(1)
os.environ.setdefault('OMP_NUM_THREADS', '1')

# Where the tests are started in the background, Ctrl-C is ignored, and so it is by every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """The folder of small real data sets; OLOR_MM_DATA names it, else it is looked for beside the repository."""
    folder = Path(os.environ.get('OLOR_MM_DATA', REPO.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip(f'real data not found at {folder}: set OLOR_MM_DATA to the folder that holds coco_mini, pacs, ...')
    return folder
