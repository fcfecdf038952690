"""tools/merge_lora.py: a checkpoint of a run with LoRA becomes one of the plain model."""

import pytest
import torch

from olor_mm.tooling import InputError, merge_lora
from tests.test_models._attention import AttentionModel, adapted, fill

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
CONFIG = """
default_scope = 'mmengine'
model = dict(type='olor_mm.Tuned', of='AttentionModel', method=[dict(type='LoRA', rank=2), 'BitFit'],
             backbone=dict(kind={kind!r}, init_cfg={init_cfg!r}))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


def write(folder, kind='torch', init_cfg=None):
    file = folder / 'config.py'
    file.write_text(CONFIG.format(kind=kind, init_cfg=init_cfg))
    return str(file)


@pytest.mark.parametrize('kind', ['fused', 'torch'])
def test_the_result_is_of_the_plain_model(kind, tmp_path, capsys):
    model = adapted(kind).eval()
    expected = model(X)
    torch.save(
        {'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': ('a', 'b')}}}, tmp_path / 'a.pth'
    )
    merge_lora([write(tmp_path, kind), str(tmp_path / 'a.pth'), str(tmp_path / 'new' / 'b.pth')])
    assert 'tensors of AttentionModel without LoRA' in capsys.readouterr().out
    saved = torch.load(tmp_path / 'new' / 'b.pth')
    assert saved['meta']['dataset_meta'] == {'classes': ('a', 'b')}
    plain = AttentionModel(backbone={'kind': kind}).eval()
    plain.load_state_dict(saved['state_dict'], strict=True)
    torch.testing.assert_close(plain(X), expected, rtol=1e-5, atol=1e-5)


def test_of_what_was_trained_alone(tmp_path):
    from olor_mm.engine.trained_only import LEFT_OUT, _number, _print

    model = adapted('torch').eval()
    torch.save(
        {'state_dict': {k: v for k, v in model.state_dict().items() if k not in model.tuning.added}}, tmp_path / 'p'
    )
    fill(model)
    expected, state = model(X), model.state_dict()
    left = [name for name in state if name.startswith('backbone.patch')]
    rows = torch.tensor([[_number(name), *_print(state[name])] for name in left], dtype=torch.float64)
    state = {**{k: v for k, v in state.items() if k not in left}, LEFT_OUT: rows}
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'p'), 'prefix': 'backbone.'}
    merge_lora([write(tmp_path, init_cfg=init_cfg), str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')])
    plain = AttentionModel(backbone={'kind': 'torch'}).eval()
    plain.load_state_dict(torch.load(tmp_path / 'b.pth')['state_dict'], strict=True)
    torch.testing.assert_close(plain(X), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_merged(tmp_path):
    config, out = write(tmp_path), str(tmp_path / 'b.pth')
    torch.save({'state_dict': AttentionModel(backbone={'kind': 'torch'}).state_dict()}, tmp_path / 'plain.pth')
    torch.save({'state_dict': adapted('fused').state_dict()}, tmp_path / 'other.pth')
    state = adapted('torch').state_dict()
    torch.save({'state_dict': {k: v for k, v in state.items() if k != 'head.bias'}}, tmp_path / 'part.pth')
    torch.save([1], tmp_path / 'list.pth')
    for file, message in {
        'missing.pth': 'the checkpoint to merge is missing',
        'plain.pth': 'has nothing of LoRA',
        'other.pth': 'has nothing of LoRA',
        'part.pth': r'(?s)does not fit the model of .*head\.bias',
        'list.pth': 'is no checkpoint of a run',
    }.items():
        with pytest.raises(InputError, match=message):
            merge_lora([config, str(tmp_path / file), out])
    with pytest.raises(InputError, match='exists'):
        merge_lora([config, str(tmp_path / 'plain.pth'), config])
    with pytest.raises(InputError, match='no model with LoRA alone: methods are VPT'):
        merge_lora([config, str(tmp_path / 'plain.pth'), out, '--cfg-options', 'model.method=VPT'])
