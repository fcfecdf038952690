"""Does what tools/train.py would do, as far as tools/search.py sees it, in no time: a validation for each epoch.

The accuracy has its peak at a level of 1e-2 and a power of 2, grows from epoch to epoch, and depends on the seed a
little. A file in the folder that STAND_IN names says what else happens: ``fail-LEVEL``, ``wait-LEVEL-EPOCH``.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

EPOCHS = 4
#: Level 0 is as good as this one.
PLAIN = 2e-4


def accuracy(level, power, seed, epoch, plain=PLAIN):
    """What a run gives, in closed form."""
    at = math.log10(level or plain)
    return 90 - 3 * (at + 2) ** 2 - (math.log2(power) - 1) ** 2 - 10 / epoch + 0.3 * math.sin(17 * seed + 5 * at)


def settings(argv):
    """The point and the seed of a run."""
    pairs = dict(part.split('=', 1) for part in argv if '=' in part)
    rollback = 'optim_wrapper.rollback.'
    return (
        float(pairs[f'{rollback}max_level']),
        float(pairs[f'{rollback}power']),
        int(pairs['randomness.seed']),
    )


def main(argv):
    """One run."""
    work_dir = Path(argv[argv.index('--work-dir') + 1])
    level, power, seed = settings(argv)
    power = power if level else 2
    told = Path(os.environ['STAND_IN'])
    with (told / 'events').open('a') as events:
        events.write(f'{work_dir.name}{" again" if "--resume" in argv else ""}\n')
    done = sum(len(file.read_text().splitlines()) for file in work_dir.glob('*/vis_data/scalars.json'))
    folder = work_dir / str(time.time_ns()) / 'vis_data'
    folder.mkdir(parents=True)
    for epoch in range(done + 1, EPOCHS + 1):
        if (told / f'fail-{level:.3g}').exists():
            print('RuntimeError: out of something')
            return 1
        deadline = time.time() + 60
        while (told / f'wait-{level:.3g}-{epoch}').exists() and time.time() < deadline:
            if not (told / f'waits-{level:.3g}').exists():
                (told / f'waits-{level:.3g}').write_text(str(os.getpid()))
            time.sleep(0.01)
        found = accuracy(level, power, seed, epoch)
        values = {'toy/accuracy': found, 'toy/distance': 1.0, 'accuracy/top1': found, 'time': 0.1, 'step': epoch}
        with (folder / 'scalars.json').open('a') as scalars:
            scalars.write(json.dumps(values) + '\n')
        print(f'Epoch(train) [{epoch}][1/1]  loss: 1', flush=True)
        time.sleep(float(os.environ.get('STAND_IN_SECONDS', '0')))
    for name in ('epoch_1.pth', 'last_checkpoint'):
        (work_dir / name).write_text('weights')
    return 0


def use(monkeypatch, folder, seconds=0.0):
    """Put it in the place of tools/train.py."""
    from olor_mm.tooling.runs import crew

    if monkeypatch is not None:
        monkeypatch.setenv('STAND_IN', str(folder))
        monkeypatch.setenv('STAND_IN_SECONDS', str(seconds))
        put = monkeypatch.setattr
    else:
        put = setattr
    put(crew, 'command', lambda argv, processes: [sys.executable, '-S', __file__, *argv])
    put(crew, 'TICK', 0.02)
    put(crew, 'LOOK', 0.0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
