"""A toy that tools/train.py trains in a second, and a stand-in for tools/train.py that takes none."""

import json
import os
import signal
import sys
import time
from pathlib import Path

CONFIG = """
custom_imports = dict(imports=['tests.test_tools._runs_parts'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(type='ToyModel')
train_dataloader = dict(
    dataset=dict(type='ToyDataset'), sampler=dict(type='DefaultSampler', shuffle=True), batch_size=4, num_workers=0,
    collate_fn=dict(type='pseudo_collate'))
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
val_dataloader = dict(
    dataset=dict(type='ToyQuiet'), sampler=dict(type='DefaultSampler', shuffle=False), batch_size=4, num_workers=0,
    collate_fn=dict(type='pseudo_collate'))
val_cfg = dict()
val_evaluator = dict(type='RunsMetric')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
default_hooks = dict(
    checkpoint=dict(type='olor_mm.DurableCheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=2))
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook')]
randomness = dict(seed=3)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
"""

SLOW = "custom_hooks.append(dict(type='ToySlow', seconds=0.2))\n"
#: Killed, once, while the last epoch is validated.
KILLED = "custom_hooks.append(dict(type='ToyKilled', epoch=3))\n"


def write_config(folder, extra='', name='toy.py'):
    """The toy's config."""
    file = Path(folder, name)
    file.write_text(CONFIG + extra)
    return file


def plan():
    """What the stand-in is told, as JSON in an environment variable: run's name to what it does."""
    return json.loads(os.environ['STAND_IN'])


def stand_in(argv):
    """Does what tools/train.py would do, as far as it is seen from outside."""
    work_dir = Path(argv[argv.index('--work-dir') + 1])
    plan_of = plan()
    told = {'steps': 2, 'seconds': 0, 'code': 0, **plan_of.get(work_dir.name, {})}
    told.update(plan_of.get(f'{work_dir.parent.name}/{work_dir.name}', {}))
    with (work_dir.parent / 'events.txt').open('a') as events:
        gpu, threads = (os.environ.get(key, '-') for key in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS'))
        events.write(f'begin {work_dir.name} {" ".join(argv[argv.index("--work-dir") + 2 :])} {gpu} {threads}\n')
    if told.get('deaf'):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if (told.get('deaf') or told.get('leaves')) and not os.fork():
        Path(work_dir, 'worker').write_text(str(os.getpid()))
        time.sleep(60)
    folder = work_dir / str(time.time_ns()) / 'vis_data'
    folder.mkdir(parents=True)
    Path(work_dir, 'pid').write_text(str(os.getpid()))
    for step in range(told.get('first', 1), told['steps'] + 1):
        with (folder / 'scalars.json').open('a') as scalars:
            scalars.write(json.dumps({'loss': 1 / step, 'time': 0.5, 'iter': step, 'step': step}) + '\n')
            value = told['values'][step - 1] if 'values' in told else told.get('value', 10.0 * step)
            scalars.write(json.dumps({'accuracy': value, 'time': 0.1, 'step': step}) + '\n')
        print(f'Epoch(train) [{step}][1/1] lr: 1', flush=True)
        time.sleep(told['seconds'] / told['steps'])
    if told.get('checkpoint'):
        (work_dir / 'toy.py').touch()
        (work_dir / 'epoch_2.pth').touch()
        (work_dir / 'last_checkpoint').write_text('epoch_2.pth')
    with (work_dir.parent / 'events.txt').open('a') as events:
        events.write(f'end {work_dir.name}\n')
    if told['code']:
        print('RuntimeError: it broke')
    return told['code']


def stand_in_for_forgetting(argv):
    """What tools/forgetting.py would write: distances that are told in the environment, by names of rows."""
    told = plan()['kept']
    if 'error' in told:
        print(f'error: {told["error"]}\n  looked for: x')
        return 2
    rows = [{'name': 'pre-trained', 'discrepancy': {'overall': 0.0}, **told['pre-trained']}]
    names = [argv[i + 1] for i, word in enumerate(argv) if word == '--row']
    rows += [{'name': name, **told[name]} for name in names]
    out = Path(argv[argv.index('--out') + 1])
    (out / 'table.json').write_text(json.dumps({'rows': rows}))
    (out / 'argv.json').write_text(json.dumps(argv))
    return 0


if __name__ == '__main__':
    sys.exit((stand_in_for_forgetting if '--row' in sys.argv else stand_in)(sys.argv[1:]))
