"""Checkpoints that say where theta_0 is: what they hold, and what happens where it is not there."""

import copy
import io
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from olor_mm.rollback import ANCHOR_KEY, AnchorFileError
from olor_mm.rollback import _references as references
from olor_mm.rollback._lossless import same_bits
from olor_mm.rollback._references import REFERENCE_KEY, decoded, digest_of

from .test_keeping import Run

REFERENCE = {'saved': 'reference'}


def saved(run):
    buffer = io.BytesIO()
    torch.save(run.optimizer.state_dict(), buffer)
    return buffer.getvalue()


def test_a_checkpoint_is_as_large_as_without_a_rollback(tmp_path):
    plain = Run(tmp_path, numbers=torch.float64).step()
    other = Run(tmp_path, numbers=torch.float64, **REFERENCE).step()
    bare = Run(tmp_path, numbers=torch.float64)
    bare.rollback.detach()
    bare.step()
    theta_0 = sum(p.numel() * p.element_size() for p in plain.params)
    assert len(saved(plain)) - len(saved(bare)) > theta_0
    # Two of the tensors are in no file, or have no elements; a reference is some hundred bytes with its record.
    assert len(saved(other)) - len(saved(bare)) < 7 * 1000


def test_it_holds_plain_types_and_tells_path_hash_and_key(tmp_path):
    run = Run(tmp_path, **REFERENCE).step()
    state = torch.load(io.BytesIO(saved(run)), weights_only=True)['state']
    told = json.loads(bytes(state[0][REFERENCE_KEY].tolist()))
    assert told['file'] == str(run.file)
    assert told['sha256'] == digest_of(run.file)
    assert told['key'] == ['state_dict', 'backbone.layer0.weight']
    assert ANCHOR_KEY not in state[0]
    # In no file: by its values.
    assert same_bits(state[6][ANCHOR_KEY], run.start[6])
    # The optimizer's own state is what it was.
    assert all(ANCHOR_KEY in run.optimizer.state[p] for p in run.params)
    assert not any(REFERENCE_KEY in run.optimizer.state[p] for p in run.params)


def test_what_differs_in_one_bit_is_saved_by_value(tmp_path):
    run = Run(tmp_path, **REFERENCE)
    with torch.no_grad():
        run.params[0].view(-1)[-1] += 1e-3
        run.params[1].view(-1)[0].neg_().neg_()
    start = run.weights()
    state = run.step().optimizer.state_dict()['state']
    assert same_bits(state[0][ANCHOR_KEY], start[0])
    assert REFERENCE_KEY in state[1]


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path, monkeypatch, caplog):
    run = Run(tmp_path, **REFERENCE).step()
    run.optimizer.state_dict()
    digest = digest_of(run.file)
    monkeypatch.setattr(references.hashlib, 'sha256', None)
    assert REFERENCE_KEY in run.optimizer.state_dict()['state'][0]
    assert digest_of(run.file) == digest
    monkeypatch.undo()
    data = run.file.read_bytes()
    run.file.write_bytes(data + b' ')
    for _ in range(2):
        assert same_bits(run.optimizer.state_dict()['state'][0][ANCHOR_KEY], run.start[0])
    assert caplog.text.count('is missing or has changed: from now on checkpoints hold') == 1
    run.file.write_bytes(data)
    os.utime(run.file, ns=(0, 1))
    assert REFERENCE_KEY in run.optimizer.state_dict()['state'][0]


@pytest.mark.parametrize('how', ['missing', 'changed', 'elsewhere', 'another elsewhere'])
def test_where_the_file_is_not_what_it_was(how, tmp_path):
    whole = Run(tmp_path).step(range(5)).weights()
    first = Run(tmp_path, **REFERENCE).step(range(3))
    weights, state = first.weights(), copy.deepcopy(first.optimizer.state_dict())
    second = Run(tmp_path).resume(weights, state)
    files = second.rollback.keeper.origins.files
    data = first.file.read_bytes()
    copied = Path(tmp_path, 'a copy.pth')
    first.file.unlink()
    copied.write_bytes(data)
    files[:] = []
    if how == 'changed':
        first.file.write_bytes(data + b' ')
    elif how == 'another elsewhere':
        copied.write_bytes(data + b' ')
    if how.endswith('elsewhere'):
        files[:] = [str(copied)]
    if how == 'elsewhere':
        assert all(map(same_bits, second.step(range(3, 5)).weights(), whole))
        return
    here = {'missing': 'No such file', 'changed': f'has SHA-256 {digest_of(copied)[:0]}'}.get(
        how, 'a copy.pth has SHA-256'
    )
    with pytest.raises(AnchorFileError, match=rf'says that it is in .*pre trained\.pth.*{here}.*anchor=FILE') as caught:
        second.step([3])
    assert json.loads(bytes(state['state'][0][REFERENCE_KEY].tolist()))['sha256'] in str(caught.value)
    assert all(map(same_bits, second.weights(), weights))
    # Mended, the run goes on.
    first.file.write_bytes(data)
    assert all(map(same_bits, second.step(range(3, 5)).weights(), whole))


def test_no_file_is_known(tmp_path, caplog):
    run = Run(tmp_path, **REFERENCE)
    run.rollback.keeper.origins.files.clear()
    state = run.step().optimizer.state_dict()['state']
    assert all(ANCHOR_KEY in state[i] for i in state)


def test_a_file_that_cannot_be_read_is_told(tmp_path, caplog):
    run = Run(tmp_path, **REFERENCE)
    run.rollback.keeper.origins.files[:] = [str(tmp_path / 'none.pth')]
    state = run.step().optimizer.state_dict()['state']
    assert all(ANCHOR_KEY in state[i] for i in state)
    assert 'checkpoints do not refer to' in caplog.text


def test_a_half_precision_file_is_referred_to_by_what_it_becomes(tmp_path):
    run = Run(tmp_path, **REFERENCE)
    content = torch.load(run.file, weights_only=True)['state_dict']
    torch.save({key: value.half() for key, value in content.items()}, run.file)
    state = run.step().optimizer.state_dict()['state']
    assert [REFERENCE_KEY in state[i] for i in range(7)] == [bool(i % 2) for i in range(7)]
    second = Run(tmp_path).resume(run.weights(), state and run.optimizer.state_dict())
    second.rollback.capture()
    assert all(map(same_bits, [second.rollback.anchor(p) for p in second.params], run.start))


@pytest.mark.parametrize(
    'told',
    [b'', b'[]', b'{"file": "x"}', b'{"file": 1, "sha256": "", "key": [], "dtype": "float32"}', b'\xff', b'[' * 9999],
)
def test_what_is_no_reference_is_refused(told):
    with pytest.raises(AnchorFileError, match='no reference to a file'):
        decoded(torch.tensor(list(told), dtype=torch.uint8))
    with pytest.raises(AnchorFileError, match='no reference to a file'):
        decoded(torch.tensor([float('nan'), 1e9]))
    with pytest.raises(AnchorFileError, match='no reference to a file'):
        decoded('<generator object>')


@pytest.mark.parametrize('kind', [torch.float32, torch.float16, torch.bfloat16, torch.complex64], ids=str)
def test_a_reference_survives_being_cast(kind):
    reference = references.Reference('/a b/\N{SNOWMAN}.pth', '0' * 64, ('model', 'x'), 'float32')
    assert decoded(reference.encoded().to(kind)) == reference


def test_the_checkpoint_of_another_model_is_told(tmp_path):
    run = Run(tmp_path, **REFERENCE).step()
    state = run.optimizer.state_dict()
    file = json.loads(bytes(state['state'][0][REFERENCE_KEY].tolist()))
    file['key'] = ['state_dict', 'other']
    state['state'][0][REFERENCE_KEY] = torch.tensor(list(json.dumps(file).encode()), dtype=torch.uint8)
    run.optimizer.load_state_dict(state)
    with pytest.raises(
        AnchorFileError, match=r'theta_0 of layer0.weight is to be state_dict/other of .*shape \(7, 9\)'
    ):
        run.step()


def test_the_log_says_what_is_referred_to(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = Run(tmp_path, **REFERENCE).step()
    run.optimizer.state_dict()
    assert f'checkpoints refer to {run.file} (SHA-256 {digest_of(run.file)}) for 6 of 7 tensors' in caplog.text


@pytest.mark.parametrize('key', ['optimizer', 'message_hub'])
def test_the_checkpoint_of_a_run_is_not_referred_to(key, tmp_path, caplog):
    """The run that saves it may write over it, and theta_0 would be nowhere."""
    run = Run(tmp_path, **REFERENCE)
    torch.save({**torch.load(run.file, weights_only=True), key: {}}, run.file)
    run.step()
    state = torch.load(io.BytesIO(saved(run)), weights_only=True)['state']
    assert all(ANCHOR_KEY in kept and REFERENCE_KEY not in kept for kept in state.values())
    assert 'it is the checkpoint of a run' in caplog.text


def test_a_file_with_its_time_put_back_is_hashed_anew(tmp_path):
    file = tmp_path / 'x.pth'
    file.write_bytes(b'one')
    before, found = digest_of(file), file.stat()
    file.write_bytes(b'two')
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert digest_of(file) != before


@pytest.mark.parametrize('value', [torch.tensor([float('inf')]), torch.zeros(1).expand(10**9)], ids=['inf', 'long'])
def test_what_is_no_reference_is_told_as_such(value):
    with pytest.raises(AnchorFileError, match='no reference'):
        decoded(value)


@pytest.mark.parametrize('form', ['values', 'lossless'])
def test_a_checkpoint_is_read_into_the_tensors_of_a_state_dict(form, tmp_path):
    """As torch's distributed checkpoints do: nothing may be rounded, whatever the present theta_0 could be kept in."""
    (tmp_path / 'b').mkdir()
    source = Run(tmp_path).step()
    target = Run(tmp_path / 'b', **({'dtype': 'lossless'} if form == 'lossless' else {}))
    for p in target.params:
        p.data.zero_()
    target.step()
    state, brought = target.optimizer.state_dict(), source.optimizer.state_dict()
    for index, kept in state['state'].items():
        for key, value in kept.items():
            if torch.is_tensor(value):
                value.copy_(brought['state'][index][key])
    target.optimizer.load_state_dict(state)
    target.rollback.capture()
    assert all(
        same_bits(target.rollback.anchor(p), source.rollback.anchor(q))
        for p, q in zip(target.params, source.params, strict=True)
        if p.numel()
    )
