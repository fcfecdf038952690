"""The durable checkpoint hook: MMEngine's files, complete or not there at all, and never one too few."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, METRICS

from olor_mm.engine import CheckpointNotSavedError, DurableCheckpointHook, load_from_local
from olor_mm.engine.integrity import damage
from olor_mm.engine.replacing import put_in_place, restore
from tests._torch import needs_fsdp_on_the_cpu

from ._ranks import on_ranks
from ._sharded import sharded_config, sharded_run
from ._toy import make_runner, toy_config, weights

OURS, THEIRS = 'olor_mm.DurableCheckpointHook', 'CheckpointHook'


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """Goes up in some epochs and down in others."""

    scores = iter(())

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'acc': next(type(self).scores), 'other': 1.0}


def config_of(work_dir, scores=None, ema=False, **hook):
    config = toy_config(work_dir, rollback={'max_level': 0.1, 'min_level': 0.01})
    config.default_hooks.checkpoint = {'type': OURS, 'interval': 1, **hook}
    if ema:
        config.custom_hooks.append({'type': 'EMAHook'})
    if scores is not None:
        ToyMetric.scores = iter(scores)
        config.val_dataloader = {**config.train_dataloader, 'sampler': {'type': 'DefaultSampler', 'shuffle': False}}
        config.val_cfg, config.val_evaluator = {}, {'type': 'ToyMetric'}
    return config


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.suffix == '.pth' or path.name.startswith('.'))


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


CASES = {
    'plain': {},
    'few': {'max_keep_ckpts': 1},
    'two': {'max_keep_ckpts': 2},
    'best': {'save_best': 'acc', 'rule': 'greater', 'max_keep_ckpts': 1},
    'two bests': {'save_best': ['acc', 'other'], 'rule': 'less'},
    'EMA': {'ema': True, 'save_best': 'acc', 'rule': 'greater'},
    'weights alone': {'save_optimizer': False, 'save_param_scheduler': False},
    'named': {'filename_tmpl': 'my_{}.pth', 'save_begin': 2},
    'published': {'published_keys': ['state_dict', 'meta'], 'save_best': 'acc', 'rule': 'greater'},
}


def comparable(folder, kind):
    """The contents of a checkpoint without what differs between two runs of the same kind, too: times and names."""
    content = load_from_local(str(folder))
    for key in ('time', 'experiment_name', 'cfg'):
        content['meta'].pop(key, None)
    hub = content.pop('message_hub', {'runtime_info': {}, 'log_scalars': {}})
    content['runtime_info'] = {
        key: str(value).replace(kind, '')
        for key, value in hub['runtime_info'].items()
        if key not in ('cfg', 'experiment_name', 'eta')
    }
    content['scalars'] = {
        key: [list(map(float, part)) for part in scalar.data]
        for key, scalar in hub['log_scalars'].items()
        if 'time' not in key
    }
    return content


@pytest.mark.parametrize('case', CASES)
def test_the_files_are_those_of_mmengine(case, tmp_path):
    found = {}
    for kind in (OURS, THEIRS):
        config = config_of(tmp_path / kind, [0.3, 0.2, 0.4], **CASES[case])
        config.default_hooks.checkpoint.type = kind
        make_runner(config).train()
        # A published file is named after what is in it, times included.
        found[kind] = {
            name.rpartition('-')[0] or name: comparable(tmp_path / kind / name, kind) for name in names(tmp_path / kind)
        }
        record = Path((tmp_path / kind / 'last_checkpoint').read_text())
        assert record.parent == tmp_path / kind
        found[kind]['last_checkpoint'] = record.name
    assert len(found[OURS]) > 1
    assert equal(found[OURS], found[THEIRS])


@pytest.mark.parametrize('best', [{}, {'save_best': 'acc', 'rule': 'greater'}])
def test_validation_alone_saves_nothing(best, tmp_path):
    runner = make_runner(config_of(tmp_path, [0.5], **best))
    assert runner.val() == {'acc': 0.5, 'other': 1.0}
    assert not names(tmp_path)


class Kill(BaseException):
    """Stands for a kill."""


class Operations:
    """Counts what changes the disk, and breaks the n-th."""

    def __init__(self, monkeypatch, at=None):
        self.count, self.at = 0, at
        for module, name in ((os, 'replace'), (os, 'fsync'), (os, 'remove'), (os, 'unlink')):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, operation):
        def call(path, *arguments, **options):
            if isinstance(path, int) or 'toy run' in str(path):
                self.count += 1
                if self.count == self.at:
                    raise Kill
            return operation(path, *arguments, **options)

        return call


def run_to(folder, at, monkeypatch, resume=False):
    hook = {'save_best': 'acc', 'rule': 'greater', 'max_keep_ckpts': 1}
    latest = folder / 'last_checkpoint'
    epoch = 0
    if resume and latest.exists():
        epoch = load_from_local(latest.read_text())['meta']['epoch']
    config = config_of(folder, [0.1, 0.3, 0.2][epoch:], **hook)
    runner = make_runner(config, resume=resume)
    with monkeypatch.context() as context:
        operations = Operations(context, at)
        try:
            runner.train()
        except Kill:
            return None, operations.count
    return weights(runner), operations.count


@pytest.mark.slow
def test_stopped_at_any_operation_on_files(tmp_path, monkeypatch):
    expected, total = run_to(tmp_path / 'toy run', None, monkeypatch)
    # 3 epochs, 2 new bests, each with a second save of the last checkpoint.
    assert total > 30
    complete = names(tmp_path / 'toy run')
    assert complete == ['best_acc_epoch_2.pth', 'epoch_3.pth']
    for at in range(1, total + 1, 8):
        folder = tmp_path / f'toy run {at}'
        stopped, _ = run_to(folder, at, monkeypatch)
        assert stopped is None
        found = [folder / name for name in names(folder)]
        assert not any(damage(file) for file in found if not file.name.startswith('.'))
        record = folder / 'last_checkpoint'
        if record.exists():
            last = load_from_local(record.read_text())
            best = last['message_hub']['runtime_info'].get('best_ckpt')
            assert best is None or Path(best).exists()
        again, _ = run_to(folder, None, monkeypatch, resume=True)
        assert equal(again, expected)
        # At most what was superseded in the very moment of the stop is left.
        # (A validation that was cut off is not made up for by MMEngine, so the best one may be another.)
        assert 'epoch_3.pth' in names(folder)
        assert not any(name.startswith('.') for name in names(folder))


def test_the_old_one_goes_only_after_the_new_one_is_named(tmp_path, monkeypatch):
    """In MMEngine's own hook it goes before the new one is written."""
    order = []
    replace, remove = os.replace, os.remove
    monkeypatch.setattr(os, 'replace', lambda a, b: (order.append(('named', Path(b).name)), replace(a, b))[1])
    monkeypatch.setattr(os, 'remove', lambda a: (order.append(('removed', Path(a).name)), remove(a))[1])
    make_runner(config_of(tmp_path, max_keep_ckpts=1)).train()
    mine = [step for step in order if step[1].endswith('.pth') or step[1] == 'last_checkpoint']
    assert mine[-3:] == [('named', 'epoch_3.pth'), ('named', 'last_checkpoint'), ('removed', 'epoch_2.pth')]


@HOOKS.register_module(force=True)
class Full(DurableCheckpointHook):
    """Its disk is full in the second epoch, after half of the file."""

    def save(self, runner, out_dir, name, arguments, options):
        if name == 'epoch_2.pth':
            inner = runner.save_checkpoint

            def half(out_dir, name, *arguments, **options):
                inner(out_dir, name, *arguments, **options)
                os.truncate(os.path.join(out_dir, name), 1000)
                raise OSError(28, 'No space left on device')

            runner.save_checkpoint = half
        super().save(runner, out_dir, name, arguments, options)


def test_a_full_disk(tmp_path):
    config = config_of(tmp_path / 'my run', max_keep_ckpts=1)
    config.default_hooks.checkpoint.type = 'Full'
    with pytest.raises(CheckpointNotSavedError, match=r'No space left.*epoch_1\.pth.*--resume'):
        make_runner(config).train()
    assert names(tmp_path / 'my run') == ['epoch_1.pth']
    assert damage(tmp_path / 'my run' / 'epoch_1.pth') is None
    assert (tmp_path / 'my run' / 'last_checkpoint').read_text().endswith('epoch_1.pth')


@pytest.mark.parametrize('hook', [{}, {'save_best': 'acc', 'rule': 'greater'}])
def test_validation_before_training(hook, tmp_path):
    runner = make_runner(config_of(tmp_path, scores=[1, 2, 3, 4], **hook))
    assert runner.val() == {'acc': 1, 'other': 1.0}
    assert names(tmp_path) == []
    runner.train()
    assert (tmp_path / 'epoch_3.pth').is_file()
    assert bool(list(tmp_path.glob('best_*'))) == bool(hook)


def test_a_resume_that_validation_came_before(tmp_path):
    make_runner(config_of(tmp_path, scores=[1, 2, 3])).train()
    config = config_of(tmp_path, scores=range(9))
    config.model.init_cfg = {'type': 'Normal', 'layer': 'Linear', 'std': 0.1}
    config.train_cfg.max_epochs = 4
    runner = make_runner(config, resume=True)
    runner.val()
    with pytest.raises(RuntimeError, match=r'weights have changed since .* Validate with a Runner of its own'):
        runner.train()


def test_another_folder_and_leftovers(tmp_path):
    out = tmp_path / 'out' / 'my run'
    out.mkdir(parents=True)
    (out / '.epoch_7.pth.olor-part').write_bytes(b'half')
    (out / '.epoch_8.pth.olor-part').mkdir()
    (out / 'mine.pth').write_bytes(b'of the user')
    (tmp_path / 'my run').mkdir()
    (tmp_path / 'my run' / '.last_checkpoint.olor-part').write_bytes(b'half')
    (tmp_path / 'my run' / '.mine.olor-part').write_bytes(b'of the user')
    runner = make_runner(config_of(tmp_path / 'my run', out_dir=str(tmp_path / 'out')))
    runner.train()
    assert names(out) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'mine.pth']
    assert (tmp_path / 'my run' / 'last_checkpoint').read_text() == str(out / 'epoch_3.pth')
    assert names(tmp_path / 'my run') == ['.mine.olor-part']


def test_it_is_mmengines_hook_by_name_and_by_class():
    assert issubclass(DurableCheckpointHook, CheckpointHook)
    for value in (-1, 'a', 1.5, True, None):
        with pytest.raises(ValueError, match='max_invalid_losses'):
            DurableCheckpointHook(max_invalid_losses=value)


def shard(rank, work_dir):
    config = sharded_config(work_dir, state='local')
    config.default_hooks.checkpoint = {'type': OURS, 'interval': 1, 'max_keep_ckpts': 2}
    sharded_run(config)


@needs_fsdp_on_the_cpu
@pytest.mark.slow
def test_folders_of_shards(tmp_path):
    on_ranks(2, shard, str(tmp_path))
    assert names(tmp_path) == ['epoch_2.pth', 'epoch_3.pth']
    assert sorted(path.name for path in (tmp_path / 'epoch_3.pth').iterdir()) == ['rank0.pth', 'rank1.pth']
    assert damage(tmp_path / 'epoch_3.pth') is None
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')


def test_a_folder_of_shards_is_not_published(tmp_path):
    folder_of(tmp_path / 'epoch_3.pth', 'shards')
    hook = DurableCheckpointHook(published_keys=['state_dict'])
    hook.file_backend = get_file_backend(str(tmp_path))
    told = []
    logger = SimpleNamespace(warning=told.append)
    hook._publish_model(SimpleNamespace(logger=logger, work_dir=str(tmp_path)), str(tmp_path / 'epoch_3.pth'))
    assert names(tmp_path) == ['epoch_3.pth']
    assert 'is not published' in told[0]


def write_shard(rank, folder):
    """As a strategy with shards does it, with a master that is behind the others."""
    torch.distributed.init_process_group('gloo')
    hook = DurableCheckpointHook(check_finite=False)
    hook.out_dir, hook.file_backend = folder, get_file_backend(folder)

    def save(out_dir, name, *arguments, **options):
        part = Path(out_dir, name)
        part.mkdir(parents=True, exist_ok=True)
        torch.save({'rank': rank}, part / f'rank{rank}.pth')
        torch.distributed.barrier()

    runner = SimpleNamespace(strategy=object(), save_checkpoint=save, work_dir=folder, optim_wrapper=None)
    if rank == 0:
        time.sleep(0.5)
    hook.save(runner, folder, 'epoch_1.pth', (), {})
    torch.distributed.barrier()


def test_a_master_that_is_behind_removes_no_shard(tmp_path):
    on_ranks(2, write_shard, str(tmp_path))
    assert sorted(path.name for path in (tmp_path / 'epoch_1.pth').iterdir()) == ['rank0.pth', 'rank1.pth']


def folder_of(path, content):
    path.mkdir(exist_ok=True)
    for rank in range(2):
        torch.save({'content': content}, path / f'rank{rank}.pth')


def contents(path):
    return {load_from_local(str(file))['content'] for file in path.iterdir()}


@pytest.mark.parametrize('kind', [Kill, KeyboardInterrupt, OSError])
@pytest.mark.parametrize('at', [1, 2, 3, 4])
def test_a_folder_is_replaced_without_a_moment_without_it(at, kind, tmp_path, monkeypatch):
    final, part = tmp_path / 'epoch_3.pth', tmp_path / '.epoch_3.pth.olor-part'
    folder_of(final, 'old')
    folder_of(part, 'new')
    steps = iter(range(1, 99))

    def broken(module, name):
        inner = getattr(module, name)

        def call(path, *arguments, **options):
            if not isinstance(path, int) or name == 'replace':
                step = next(steps)
                # A kill gives no second chance to put things right.
                if step == at or (kind is Kill and step > at):
                    raise kind
            return inner(path, *arguments, **options)

        return call

    with monkeypatch.context() as context:
        context.setattr(os, 'replace', broken(os, 'replace'))
        context.setattr(shutil, 'rmtree', broken(shutil, 'rmtree'))
        if at <= 2 or (at == 3 and kind is not OSError):
            with pytest.raises(kind):
                put_in_place(part, final)
        else:
            put_in_place(part, final)
    if kind is not Kill or at == 1:
        assert final.exists()
    restore(tmp_path, discard=True)
    assert contents(final) == {'old' if at <= 2 else 'new'}
    assert not list(tmp_path.glob('.*.olor-old'))


def test_a_file_gives_way_to_a_folder(tmp_path):
    torch.save({'content': 'old'}, tmp_path / 'epoch_3.pth')
    folder_of(tmp_path / '.epoch_3.pth.olor-part', 'new')
    put_in_place(tmp_path / '.epoch_3.pth.olor-part', tmp_path / 'epoch_3.pth')
    assert contents(tmp_path / 'epoch_3.pth') == {'new'}
    assert names(tmp_path) == ['epoch_3.pth']
