"""theta_0 in half precision, mapped, or saved by reference, in runs of MMEngine: same weights, smaller checkpoints."""

import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from olor_mm.engine import RollbackSettings
from olor_mm.engine.loading import local_file, read_weights
from olor_mm.engine.session import RollbackSession
from olor_mm.rollback import ANCHOR_KEY, AnchorFileError
from olor_mm.rollback._references import REFERENCE_KEY, digest_of
from olor_mm.tooling.errors import InputError
from olor_mm.tooling.run_checkpoint import check_run_checkpoint

from ._ranks import on_ranks
from ._replicas import replica, replica_config, state_of
from ._toy import make_runner, toy_config, weights

ROLLBACK = {'max_level': 0.1, 'min_level': 0.01, 'power': 2}
OPTIONS = {
    'lossless': {'anchor_dtype': 'lossless'},
    'mapped': {'anchor_memory': 'mapped'},
    'pinned': {'anchor_memory': 'pinned'},
    'reference': {'anchor_saved': 'reference'},
    'all': {'anchor_dtype': 'lossless', 'anchor_memory': 'mapped', 'anchor_saved': 'reference'},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """The pre-trained file, of half precision, and the weights of the plain run and of one without rollback."""
    folder = tmp_path_factory.mktemp('plain run')
    file = folder / 'pre trained.pth'
    torch.manual_seed(5)
    model = make_runner(toy_config(folder / 'made')).model
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    # MMEngine's own checkpoints have more in them than weights.
    torch.save({'state_dict': state, 'meta': {'epoch': 3}}, file)
    runner = make_runner(config_of(folder / 'x', file))
    runner.train()
    return file, weights(runner), folder / 'x'


def config_of(work_dir, file, **options):
    rollback = {**ROLLBACK, **options}
    config = toy_config(work_dir, rollback=rollback, optimizer={'type': 'AdamW', 'lr': 0.01}, load_from=str(file))
    config.default_hooks.checkpoint.type = 'olor_mm.DurableCheckpointHook'
    return config


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def saved_in(file):
    return torch.load(file, weights_only=False)['optimizer']


@pytest.mark.parametrize('name', OPTIONS)
def test_a_run_ends_with_the_weights_of_the_plain_form_also_resumed(name, plain, tmp_path, capfd):
    file, expected, _ = plain
    runner = make_runner(config_of(tmp_path / 'a', file, **OPTIONS[name]))
    runner.train()
    assert same(weights(runner), expected)
    said = capfd.readouterr()
    told = said.out + said.err
    states = saved_in(tmp_path / 'a' / 'epoch_2.pth')['state'].values()
    kinds = {str(state[ANCHOR_KEY].dtype) for state in states if ANCHOR_KEY in state}
    if name == 'lossless':
        assert 'theta_0: 10 of 10 tensors are kept in fewer bits' in told
        # Whoever reads a checkpoint into a state dict's tensors must not round.
        assert kinds == {'torch.float32'}
    elif 'reference' in OPTIONS[name].values():
        assert f'checkpoints refer to {file} (SHA-256 {digest_of(file)}) for 10 of 10 tensors' in told
        assert not kinds
        assert saved_in(tmp_path / 'a' / 'epoch_2.pth')['rollback']['files'] == {str(file): digest_of(file)}
    # As the plain form, and so that the plain form goes on.
    config = config_of(tmp_path / 'b', file)
    resumed = make_runner(config, load_from=str(tmp_path / 'a' / 'epoch_2.pth'), resume=True)
    resumed.train()
    assert same(weights(resumed), expected)
    if 'reference' in OPTIONS[name].values():
        said = capfd.readouterr()
        line = f'theta_0: 10 of 10 tensors from the resumed checkpoint, 10 of them from {file}, which it names'
        assert line in said.out + said.err


@pytest.mark.parametrize('name', ['all'])
def test_a_plain_checkpoint_goes_on_in_every_other_way(name, plain, tmp_path):
    _, expected, folder = plain
    config = config_of(tmp_path / 'b', folder / 'epoch_2.pth', **OPTIONS[name])
    resumed = make_runner(config, resume=True)
    resumed.train()
    assert same(weights(resumed), expected)
    # What is resumed from is no pre-trained file: it will be removed in time.
    assert not any(REFERENCE_KEY in state for state in saved_in(tmp_path / 'b' / 'epoch_3.pth')['state'].values())


def test_a_missing_file_names_path_hash_and_remedy_and_may_be_elsewhere(plain, tmp_path):
    file, expected, _ = plain
    here = tmp_path / 'pre trained.pth'
    here.write_bytes(file.read_bytes())
    make_runner(config_of(tmp_path / 'a', here, anchor_saved='reference')).train()
    digest = digest_of(here)
    here.rename(tmp_path / 'moved.pth')
    checkpoint = tmp_path / 'a' / 'epoch_2.pth'
    said = rf'says that it is in {re.escape(str(here))}, whose SHA-256 was {digest}.*anchor=FILE.*wrapper.rollback'
    with pytest.raises(AnchorFileError, match=said):
        make_runner(config_of(tmp_path / 'b', checkpoint), resume=True).train()
    with pytest.raises(InputError, match='does not hold the pre-trained weights') as caught:
        check_run_checkpoint(str(checkpoint), None, True)
    assert 'anchor=FILE' in str(caught.value)
    check_run_checkpoint(str(checkpoint), str(tmp_path / 'moved.pth'), True)
    # A run without rollback does not need it.
    check_run_checkpoint(str(checkpoint))
    moved = config_of(tmp_path / 'b', checkpoint, anchor=str(tmp_path / 'moved.pth'), anchor_saved='reference')
    runner = make_runner(moved, resume=True)
    runner.train()
    assert same(weights(runner), expected)
    files = saved_in(tmp_path / 'b' / 'epoch_3.pth')['rollback']['files']
    assert files == {str(tmp_path / 'moved.pth'): digest}


def test_without_a_known_file_a_warning_says_so(tmp_path, capfd):
    config = toy_config(tmp_path, rollback={**ROLLBACK, 'anchor_saved': 'reference'}, by_epoch=False)
    config.train_cfg.max_iters = 2
    make_runner(config).train()
    said = capfd.readouterr()
    assert 'no file of pre-trained weights on this machine is known' in said.out + said.err


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'anchor_dtyp': 'lossless'}, r'anchor_dtyp=.*did you mean anchor_dtype'),
        (
            {'anchor_dtype': 'half'},
            r"optim_wrapper.rollback.anchor_dtype='half' is not known: .* param, lossless",
        ),
        ({'anchor_memory': 'cpu'}, r"optim_wrapper.rollback.anchor_memory='cpu' is not known"),
        ({'anchor_saved': True}, r'optim_wrapper.rollback.anchor_saved=True is not known'),
        ({'anchor_folder': '/x'}, r"optim_wrapper.rollback.anchor_folder='/x' is for anchor_memory='mapped'"),
    ],
)
def test_typos_are_refused_as_those_of_other_options(options, said):
    with pytest.raises(ValueError, match=said):
        RollbackSettings.from_cfg({'max_level': 0.1, **options})


def test_they_come_from_the_command_line(plain, tmp_path):
    config = config_of(tmp_path, plain[0])
    config.merge_from_dict({f'optim_wrapper.rollback.{key}': value for key, value in OPTIONS['all'].items()})
    settings = RollbackSettings.from_cfg(config.optim_wrapper.rollback)
    assert settings.keep.told == "anchor_dtype='lossless', anchor_memory='mapped', anchor_saved='reference'"


def test_sharded_models_are_refused():
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    session = RollbackSession(RollbackSettings.from_cfg({'max_level': 0.1, **OPTIONS['lossless']}), model)
    with pytest.raises(ValueError, match="anchor_dtype='lossless' is not for sharded models"):
        session.adopt(None, None)


def test_files_behind_addresses(tmp_path):
    file = tmp_path / 'x.pth'
    torch.save({'a': torch.ones(2)}, file)
    assert local_file(str(file)) == str(file)
    assert local_file(str(tmp_path / 'none.pth')) is None
    assert local_file('https://example.com/x.pth') is None
    assert read_weights(str(file), True)['a'].tolist() == [1, 1]


def train_replica(rank, work_dir, file, options):
    runner = replica(replica_config(work_dir, 2, rollback={**ROLLBACK, **options}, load_from=file))
    runner.train()
    states = runner.optim_wrapper.optimizer.state.values()
    return {**state_of(runner), 'kinds': {str(state[ANCHOR_KEY].dtype) for state in states if ANCHOR_KEY in state}}


def test_replicas_end_alike(tmp_path):
    """The ranks' theta_0 is compared at the start, and its distance measured, wherever and however it is kept."""
    runner = make_runner(replica_config(tmp_path / 'made'))
    file = str(tmp_path / 'pre trained.pth')
    start = {key: value.half() for key, value in runner.model.state_dict().items()}
    torch.save(start, file)
    options = {**OPTIONS['all'], 'anchor_folder': str(tmp_path / 'folder')}
    one, other = on_ranks(2, train_replica, str(tmp_path / 'ranks'), file, options)
    assert one['kinds'] == other['kinds'] == {'torch.float16'}
    assert all(same(one[kind], other[kind]) for kind in ('weights', 'theta_0'))
    assert same(one['theta_0'], {key: start[key].double() for key in one['theta_0']})
    assert not any(torch.equal(value, one['weights'][key]) for key, value in one['theta_0'].items())


def test_theta_0_is_fetched_ahead_in_the_last_backward_pass_before_a_step_alone():
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    config = {'optimizer': {'type': 'SGD', 'lr': 0.1}, 'accumulative_counts': 3}
    config['constructor'] = 'olor_mm.OLOROptimWrapperConstructor'
    wrapper = build_optim_wrapper(model, {**config, 'rollback': {'max_level': 0.1, **OPTIONS['pinned']}})
    wrapper.initialize_count_status(model, 0, 5)
    found = []
    for _ in range(5):
        wrapper.update_params(model.backbone(torch.ones(1, 2)).sum())
        found.append(wrapper.rollback_session.rollback.keeper.prefetch.active)
    assert found == [False, False, True, False, True]
