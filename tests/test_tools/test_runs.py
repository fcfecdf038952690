"""Many runs of tools/train.py: order, workers, failures, stops and resumes, and what is read of them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook

from olor_mm.engine.loading import load_from_local
from olor_mm.tooling.errors import InputError
from olor_mm.tooling.missed_validation import MissedValidationHook
from olor_mm.tooling.runs import Run, crew, execute, read_run
from olor_mm.tooling.runs import devices as devices_module
from olor_mm.tooling.runs.child import Child, command, stop
from olor_mm.tooling.runs.devices import shares
from olor_mm.tooling.runs.progress import Plain, Progress, position
from olor_mm.tooling.signals import Terminated
from tests.test_tools import _runs
from tests.test_tools._runs import KILLED, SLOW, write_config
from tests.test_tools._small import REPO, environment


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Puts the stand-in in the place of tools/train.py; takes what it is to do, and returns runs of these names."""
    monkeypatch.setattr(crew, 'command', lambda argv, processes: [sys.executable, '-S', _runs.__file__, *argv])
    monkeypatch.setattr(crew, 'TICK', 0.02)
    monkeypatch.setattr(crew, 'LOOK', 0.05)
    config = write_config(tmp_path)

    def runs(**told):
        monkeypatch.setenv('STAND_IN', json.dumps(told))
        return [Run(name, [str(config)], tmp_path / name) for name in told]

    return runs


def events(folder):
    return [line.split()[:2] for line in (folder / 'events.txt').read_text().splitlines()]


def lives(pid):
    try:
        return Path('/proc', str(pid), 'stat').read_text().rpartition(') ')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------- order, workers, failures


def test_one_after_the_other_and_once(stand_in, tmp_path, capsys):
    told = []
    runs = stand_in(a={}, b={'code': 3}, c={})
    found = execute(runs, on_done=told.append)
    assert [(each.run.name, each.state, each.new, each.code) for each in found] == [
        ('a', 'finished', True, 0),
        ('b', 'failed', True, 3),
        ('c', 'finished', True, 0),
    ]
    assert told == found
    assert events(tmp_path) == [[what, name] for name in 'abc' for what in ('begin', 'end')]
    said = capsys.readouterr().err
    assert f'b failed: exit status 3 (2 of 3 done); the end of {tmp_path / "b" / "output.log"}:' in said
    assert '| RuntimeError: it broke' in said
    assert 'a is finished: accuracy 20 (1 of 3 done)' in said
    # The next time, only what has failed, from its last checkpoint.
    runs = stand_in(a={}, b={}, c={})
    found = execute(runs)
    assert [(each.state, each.new) for each in found] == [('finished', False), ('finished', True), ('finished', False)]
    assert (tmp_path / 'events.txt').read_text().splitlines()[-2:] == ['begin b --resume auto - 1', 'end b']


def test_side_by_side(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr(devices_module, '_cores', lambda: 6)
    runs = stand_in(a={'seconds': 1.5}, b={'seconds': 0.2}, c={'seconds': 0.2})
    found = execute(runs, workers=2)
    assert [each.run.name for each in found] == ['a', 'b', 'c']
    happened = events(tmp_path)
    # c begins when b has ended, while a goes on.
    assert happened.index(['end', 'b']) < happened.index(['begin', 'c']) < happened.index(['end', 'a'])
    assert sorted(
        ' '.join(line.split()) for line in (tmp_path / 'events.txt').read_text().splitlines() if line.startswith('b')
    ) == ['begin a - 3', 'begin b - 3', 'begin c - 3']


def test_a_generator_is_asked_when_a_worker_is_free(stand_in):
    waiting, seen = stand_in(a={}, b={}, c={}), []

    def ask():
        for run in waiting:
            seen.append(('asked', run.name))
            yield run

    execute(ask(), on_done=lambda outcome: seen.append(('done', outcome.run.name)))
    assert seen == [(what, name) for name in 'abc' for what in ('asked', 'done')]


def test_a_poor_run_is_stopped_for_good(stand_in, tmp_path):
    seen = []

    def watch(run, metrics):
        seen.append((run.name, metrics['accuracy']))
        return 'it is poor' if run.name == 'a' and metrics['accuracy'] >= 30 else None

    runs = stand_in(a={'steps': 100, 'seconds': 30}, b={'steps': 3, 'seconds': 0.5})
    began = time.monotonic()
    found = execute(runs, watch=watch)
    assert time.monotonic() - began < 10
    assert [(each.state, each.why) for each in found] == [('stopped', 'it is poor'), ('finished', '')]
    assert seen[:3] == [('a', 10.0), ('a', 20.0), ('a', 30.0)]
    assert read_run(tmp_path / 'a').last['accuracy'] == 30
    again = execute(runs, watch=watch)
    assert [(each.state, each.new, each.why) for each in again] == [
        ('stopped', False, 'it is poor'),
        ('finished', False, ''),
    ]


# ---------------------------------------------------------------- devices


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (dict(workers=3, devices=[0, 2]), ['0', '2', '0']),
        (dict(workers=2, devices=[0, 1, 2, 3, 4], processes=2), ['0,1', '2,3']),
        (dict(workers=1, devices=['GPU-8a']), ['GPU-8a']),
        (dict(workers=2, devices=()), ['', '']),
    ],
)
def test_gpus_are_dealt_out(arguments, expected):
    assert [share['CUDA_VISIBLE_DEVICES'] for share in shares(**arguments)] == expected


def test_visible_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert shares(3) == [{'CUDA_VISIBLE_DEVICES': number} for number in '010']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5, 7')
    assert shares(2) == [{'CUDA_VISIBLE_DEVICES': number} for number in '57']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(workers=0), 'workers=0 must be'),
        (dict(workers=1, devices=[1, 1]), 'names a GPU twice'),
        (dict(workers=1, devices=[1], processes=2), 'needs 2 GPUs, but there are 1: 1'),
        (dict(workers=1, processes=0), 'processes of a run=0'),
    ],
)
def test_refused_devices(arguments, message):
    with pytest.raises(InputError, match=message):
        shares(**arguments)


def test_several_processes_of_a_run():
    found = command(['x.py', '--amp'], processes=2)
    assert found[1:4] == ['-m', 'olor_mm.tooling.torchrun', '2']
    assert found[5:] == ['x.py', '--amp', '--launcher', 'pytorch']
    assert Path(found[4]) == REPO / 'tools' / 'train.py'


# ---------------------------------------------------------------- what is refused


def test_other_settings_are_named(stand_in, tmp_path):
    (run,) = stand_in(a={})
    execute([run])
    other = Run('a', [*run.argv, '--amp', '--cfg-options', 'optim_wrapper.optimizer.lr=0.1'], run.work_dir)
    with pytest.raises(InputError) as error:
        execute([other])
    text = str(error.value)
    assert 'run a: ' in text
    assert '--amp: there False, here True' in text
    assert 'optim_wrapper.optimizer.lr: there 0.05, here 0.1' in text
    # The file itself, too.
    write_config(tmp_path, "model['backbone'] = dict(width=6)\n")
    with pytest.raises(InputError, match=r'model\.backbone\.width: there not set, here 6'):
        execute([Run('a', run.argv, run.work_dir)])


def test_what_failed_before_its_first_checkpoint_may_be_mended(stand_in, tmp_path):
    (run,) = stand_in(a={'code': 2, 'steps': 1})
    assert execute([run])[0].state == 'failed'
    stand_in(a={'first': 2, 'steps': 3})
    mended = Run('a', [*run.argv, '--data-root', 'right'], run.work_dir)
    assert execute([mended])[0].state == 'finished'
    # Anew, and without what had been logged before.
    assert (tmp_path / 'events.txt').read_text().splitlines()[2].split()[:3] == ['begin', 'a', '-']
    assert [each['step'] for each in read_run(run.work_dir).validations] == [2, 3]
    with pytest.raises(InputError, match=r"--data-root: there 'right', here 'left'"):
        execute([Run('a', [*run.argv, '--data-root', 'left'], run.work_dir)])
    # With a checkpoint it may not.
    (other,) = stand_in(b={'code': 1})
    execute([other])
    (other.work_dir / 'epoch_1.pth').touch()
    with pytest.raises(InputError, match=r"--data-root: there None, here 'left'"):
        execute([Run('b', [*other.argv, '--data-root', 'left'], other.work_dir)])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--work-dir', 'x'], '--work-dir and --resume are not options of one run'),
        (['--resume'], '--work-dir and --resume are not options of one run'),
        (['--cfg-options', 'optim_wraper.x=1'], "did you mean 'optim_wrapper'"),
        (['--cfg-options', 'model.type=olor_mm.Tunde'], "model.type='olor_mm.Tunde' does not exist"),
    ],
)
def test_mistakes_are_found_before_the_first_run(stand_in, tmp_path, options, message):
    first, second = stand_in(a={}, b={})
    with pytest.raises(InputError, match=message):
        execute([first, Run('b', [*second.argv, *options], second.work_dir)])
    assert not (tmp_path / 'events.txt').exists()


def test_folders(stand_in, tmp_path):
    a, b = stand_in(a={}, b={})
    with pytest.raises(InputError, match=r'two runs have the folder .*: a and c'):
        execute([a, Run('c', a.argv, a.work_dir)])
    with pytest.raises(InputError, match="two runs have the name 'a'"):
        execute([a, Run('a', b.argv, b.work_dir)])
    b.work_dir.mkdir()
    (b.work_dir / 'epoch_1.pth').touch()
    with pytest.raises(InputError, match='holds something else already'):
        execute([a, b])
    (b.work_dir / 'run.json').write_text('{')
    with pytest.raises(InputError, match=r'run\.json cannot be read'):
        execute([b])


def test_two_at_the_same_time(stand_in, tmp_path):
    (run,) = stand_in(a={'seconds': 20})
    run.work_dir.mkdir()
    child = Child(
        crew.command([*run.argv, '--work-dir', str(run.work_dir)], 1), run.work_dir / 'output.log', os.environ
    )
    try:
        wait_for((run.work_dir / 'pid').exists)
        with pytest.raises(InputError, match='a run is going on in'):
            Child([sys.executable, '-c', ''], run.work_dir / 'output.log', os.environ)
    finally:
        child.kill()
    assert child.code == -signal.SIGKILL
    done = Child([sys.executable, '-c', ''], run.work_dir / 'output.log', os.environ)
    wait_for(lambda: done.poll() is not None)


# ---------------------------------------------------------------- stops


@pytest.mark.parametrize(('number', 'raised'), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_stop_stops_all(stand_in, tmp_path, monkeypatch, number, raised):
    monkeypatch.setattr('olor_mm.tooling.runs.crew.stop', lambda children: stop(children, grace=0.5))
    from olor_mm.tooling.runs.child import stop

    # One does not hear SIGTERM, and has a process of its own that sleeps.
    runs = stand_in(z={}, a={'seconds': 60}, b={'seconds': 60, 'deaf': True})

    def press():
        wait_for(lambda: (tmp_path / 'a' / 'pid').exists() and (tmp_path / 'b' / 'pid').exists())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(raised, match='1 of 3 runs are finished\nto go on, give the same command again'):
        execute(runs, workers=2)
    thread.join()
    pids = [int((tmp_path / name).read_text()) for name in ('a/pid', 'b/pid', 'b/worker')]
    wait_for(lambda: not any(map(lives, pids)))
    codes = [json.loads((tmp_path / name / 'run.json').read_text())['sessions'][-1]['code'] for name in 'ab']
    assert codes == [-signal.SIGTERM, -signal.SIGKILL]
    # And it goes on.
    assert [each.state for each in execute(stand_in(z={}, a={}, b={}))] == ['finished'] * 3


def test_nothing_is_left_behind_by_a_run_that_ended(stand_in, tmp_path):
    execute(stand_in(a={'leaves': True, 'seconds': 0.5}))
    wait_for(lambda: not lives(int((tmp_path / 'a' / 'worker').read_text())))


@pytest.mark.skipif(sys.platform != 'linux', reason='the system does not tell a process that its parent has ended')
def test_a_process_that_has_just_ended_is_stopped(tmp_path):
    child = Child([sys.executable, '-S', '-c', 'raise SystemExit(3)'], tmp_path / 'output.log', os.environ)
    wait_for(lambda: not lives(child._process.pid))
    stop([child])
    assert child.code == 3


def test_no_run_outlives_what_started_it(tmp_path):
    code = (
        'import os, sys; sys.path.insert(0, sys.argv[1])\n'
        'from pathlib import Path\n'
        'from olor_mm.tooling.runs.child import Child\n'
        'folder = Path(sys.argv[2])\n'
        "Child([sys.executable, '-c', 'import time; time.sleep(60)'], folder / 'output.log', os.environ)\n"
        'import time; time.sleep(0.5)\n'
        "print(Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text(), flush=True)\n"
        'time.sleep(60)\n'
    )
    started = [sys.executable, '-c', code, str(REPO), str(tmp_path)]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, env=environment()) as parent:
        pid = int(parent.stdout.readline())
        assert lives(pid)
        parent.kill()
    wait_for(lambda: not lives(pid))


# ---------------------------------------------------------------- the real tool


def test_stopped_runs_end_like_those_that_never_stopped(tmp_path, monkeypatch):
    """One is killed in its last validation, one is interrupted in its second epoch; both then go on."""
    monkeypatch.setenv('PYTHONPATH', environment()['PYTHONPATH'])
    killed, slow = write_config(tmp_path, KILLED, 'killed.py'), write_config(tmp_path, SLOW, 'slow.py')
    runs = [Run('killed', [str(killed)], tmp_path / 'killed'), Run('slow', [str(slow)], tmp_path / 'slow')]

    def press():
        wait_for((tmp_path / 'slow' / 'epoch_1.pth').exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        execute(runs, workers=2)
    thread.join()
    found = execute([*runs, Run('whole', [str(write_config(tmp_path))], tmp_path / 'whole')], workers=2)
    assert [(each.state, each.new) for each in found] == [('finished', True)] * 3
    whole, *others = [read_run(tmp_path / name) for name in ('whole', 'killed', 'slow')]
    wanted = [(each['step'], each['distance/error']) for each in whole.validations]
    assert [step for step, _ in wanted] == [1, 2, 3]
    assert len({value for _, value in wanted}) == 3
    assert whole.best()['distance/error'] == min(value for _, value in wanted)
    for each in others:
        assert [(found['step'], found['distance/error']) for found in each.validations] == wanted
        assert each.curves['loss'] == whole.curves['loss']
        assert (each.trained, each.parameters) == (whole.trained, whole.parameters)
    weights = [load_from_local(str(each.checkpoint), 'cpu')['state_dict'] for each in (whole, *others)]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
        assert torch.equal(value, weights[2][key])
    assert not (tmp_path / 'whole' / 'killed').exists()
    # Facts: one of ToyModel's own, counted by hand, and the memory of a process that has torch in it.
    assert whole.trained == (4 * 8 + 8) + 3 * (8 * 8 + 8) + 2 * 8 + (8 * 2 + 2)
    assert whole.memory_of == 'process'
    assert 50 < whole.memory_before <= whole.memory < 5000
    assert 0 < whole.seconds_per_iter < 0.2 <= others[1].seconds_per_iter < 1


# ---------------------------------------------------------------- reading


def write_scalars(folder, session, *lines):
    file = folder / session / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def train_line(step, **values):
    return {'loss': 1 / step, 'time': 0.1 * step, 'iter': step, 'step': step, **values}


#: The last of a training, with what a hook logged after it.
NEW = '\n'.join(
    map(
        json.dumps,
        [
            {'map': 2.5, 'other/loss': 6.0, 'time': 1, 'step': 2},
            {'rollback/discrepancy/000_stem': 0.75, 'step': 20},
            {'map': 2.5, 'other/loss': 6.0, 'time': 1, 'step': 3},
        ],
    )
)


def test_read_run(tmp_path):
    write_scalars(
        tmp_path,
        '20260101_000000',
        train_line(10, memory=100),
        {'map': 1.0, 'other/loss': 5.0, 'time': 1, 'step': 1},
        {'rollback/discrepancy/000_stem': 0.25, 'step': 10},
        {'rollback/discrepancy/000_stem': 0.5, 'step': 20},
        train_line(20, memory=300),
        {'map': 3.0, 'other/loss': 4.0, 'time': 1, 'step': 2},
        train_line(30),
        '{"loss": 1, "it',
    )
    # Resumed from epoch 1.
    write_scalars(tmp_path, '20260102_000000', train_line(20, loss=7), NEW)
    write_scalars(tmp_path, '20260103_000000')
    found = read_run(tmp_path)
    assert [(each['step'], each['map']) for each in found.validations] == [(1, 1), (2, 2.5), (3, 2.5)]
    assert found.curves['rollback/discrepancy/000_stem'] == [(10, 0.25), (20, 0.75)]
    assert found.curves['loss'] == [(10, 0.1), (20, 7)]
    assert found.seconds_per_iter == pytest.approx(1.5)
    assert (found.memory, found.memory_of) == (100, 'GPU')
    assert found.metric == 'map'
    assert found.last['map'] == 2.5
    assert (found.best()['map'], found.best()['step']) == (2.5, 2)
    assert found.best('other/loss')['step'] == 1
    assert found.best('map', 'less')['step'] == 1
    assert not found.in_train
    assert found.trained is None
    with pytest.raises(InputError, match='these are: map, other/loss'):
        found.best('mpa')


def test_read_nothing(tmp_path):
    found = read_run(tmp_path)
    assert (found.last, found.best(), found.metric, found.memory, found.checkpoint) == ({}, {}, None, None, None)
    with pytest.raises(InputError, match='the work dir of a run is missing'):
        read_run(tmp_path / 'x')


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize(
    ('text', 'epochs', 'expected'),
    [
        ('Epoch(train)  [1][ 50/100] x\nEpoch(train)  [2][ 25/100]', 4, (0.3125, 'epoch 2 of 4')),
        ('Iter(train) [  50/1000]  lr', None, (0.05, 'iteration 50 of 1000')),
        ('Epoch(val) [1][1/2]', 4, None),
        ('', 4, None),
    ],
)
def test_position(text, epochs, expected):
    assert position(text, epochs) == expected


def test_what_is_shown(capsys, monkeypatch):
    monkeypatch.setattr('olor_mm.tooling.runs.progress.INTERVAL', 0)
    for kind in (Plain, Progress):
        shown = kind(2)
        shown.start('a')
        shown.step('a', 0.5, 'epoch 1 of 2')
        shown.say('[a] is half done')
        shown.done('a')
        assert shown.count() == '1 of 2'
        shown.close()
        said = capsys.readouterr().err
        assert '[a] is half done' in said
        assert ('0 of 2 done; a: epoch 1 of 2' in said) == (kind is Plain)


# ---------------------------------------------------------------- a validation that was missed


@pytest.mark.parametrize(
    ('loop', 'expected'),
    [
        (dict(epoch=2, max_epochs=5, val_interval=2), True),
        (dict(epoch=3, max_epochs=5, val_interval=2), False),
        (dict(epoch=5, max_epochs=5, val_interval=2), True),
        (dict(epoch=2, max_epochs=5, val_interval=2, val_begin=3), False),
        (dict(iter=20, max_iters=50, val_interval=10), True),
        (dict(iter=25, max_iters=50, val_interval=10), False),
        (dict(iter=50, max_iters=50, val_interval=100), True),
        (dict(epoch=4, max_epochs=9, val_interval=4, dynamic_milestones=[0, 4], dynamic_intervals=[4, 3]), False),
        (dict(epoch=2, max_epochs=9, val_interval=4, dynamic_milestones=[0, 4], dynamic_intervals=[2, 3]), True),
    ],
)
def test_when_a_validation_is_due(loop, expected):
    loop = SimpleNamespace(**{'val_begin': 1, **loop})
    if hasattr(loop, 'epoch'):
        loop.run_epoch = None
    assert MissedValidationHook._is_due(SimpleNamespace(train_loop=loop)) is expected


@pytest.mark.parametrize(
    ('by_epoch', 'metric_by_epoch', 'step', 'expected'),
    [
        # What was logged: iterations to 20, and validations with the steps 1 and 2 in this order.
        (True, True, 2, False),
        (True, True, 3, True),
        (True, False, 2, False),
        (False, False, 2, False),
        (False, False, 20, True),
        # The step says nothing: whether something came after the last iteration does.
        (False, True, 20, False),
    ],
)
def test_whether_a_validation_is_missing(tmp_path, by_epoch, metric_by_epoch, step, expected):
    lines = [train_line(10), {'map': 1.0, 'time': 1, 'step': 1}, train_line(20), {'map': 1.0, 'time': 1, 'step': 2}]
    write_scalars(tmp_path, '20260101_000000', *lines)
    logger = LoggerHook(log_metric_by_epoch=metric_by_epoch)
    loop = SimpleNamespace(run_epoch=None) if by_epoch else SimpleNamespace()
    runner = SimpleNamespace(work_dir=tmp_path, hooks=[logger], train_loop=loop, epoch=step, iter=step)
    assert MissedValidationHook._is_missing(runner) is expected
    if (by_epoch, metric_by_epoch) == (False, True):
        write_scalars(tmp_path, '20260102_000000', train_line(30))
        assert MissedValidationHook._is_missing(SimpleNamespace(**{**vars(runner), 'iter': 30}))
    # Where nothing was logged, nothing is known.
    nothing = SimpleNamespace(**{**vars(runner), 'work_dir': tmp_path / '20260101_000000' / 'vis_data'})
    assert not MissedValidationHook._is_missing(nothing)
