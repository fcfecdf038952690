"""FSDP of models that a method trains a part of: the weights of one process, and a resume to the bit."""

import pytest

pytest.importorskip('torch.distributed.fsdp')

from tests._torch import needs_fsdp_on_the_cpu

from ._ranks import on_ranks
from ._sharded import saved
from ._toy import make_runner
from .test_fsdp import _on_cpus as _on_cpus
from .test_fsdp import close, equal, plain, through

LORA = {'type': 'LoRA', 'rank': 2, 'targets': r'blocks\.\d+\.fc'}
#: Each trains something that has a pre-trained value, or asks to be pulled back.
METHODS = {
    'LoRA and the stem': {**LORA, 'train': 'patch_embed'},
    'LoRA, pulled back': {**LORA, 'rollback': True},
    'Subset': {'type': 'Subset', 'train': r'fc\.weight'},
    'BitFit': {'type': 'BitFit'},
    'TopK': {'type': 'TopK', 'k': 2},
}


@needs_fsdp_on_the_cpu
@pytest.mark.parametrize('name', METHODS)
def test_weights_and_a_resume(name, tmp_path):
    model = {'type': 'olor_mm.Tuned', 'of': 'SmoothModel', 'method': METHODS[name]}
    for whole, resumed in on_ranks(2, through, str(tmp_path), {'model': model}):
        equal(whole, resumed)
    make_runner(plain(tmp_path / 'alone', model=model)).train()
    one, two = (saved(tmp_path / run / 'epoch_3.pth')[0] for run in ('alone', 'whole'))
    close(one, two)
    assert any('lora' in key for key in one) == name.startswith('LoRA')
