"""Faults of real commands: signals to a process with data workers, a killed rank, mmdet's Mask R-CNN."""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from .harness import LAST, Row, quote
from .job import CONFIG
from .runs import REPO, Outcome, command, same_weights, undamaged

__all__ = ['COMMANDS']

TRAIN = (sys.executable, REPO / 'tools' / 'train.py')
DIST_TRAIN = REPO / 'tools' / 'dist_train.sh'
_WORKER = "train_dataloader['num_workers'] = 1\n"


def _ended(name: str, number: int, code: int, says: str, base: Path, group: bool) -> Row:
    """A signal to ``tools/train.py``, which has a data worker, in its second epoch."""
    folder = base / re.sub(r'\W+', '_', name)
    folder.mkdir(parents=True)
    (folder / 'job.py').write_text(CONFIG + _WORKER + "custom_hooks = custom_hooks[:1] + [dict(type='Slow')]\n")
    (folder / 'goal.py').write_text(CONFIG + _WORKER)
    arguments = (*TRAIN, folder / 'job.py', '--work-dir', folder / 'run')
    until = 'Epoch(train) [2][2/6]'
    one = command(arguments, folder / 'one.log', until, number, group)
    said, found = quote(says, one.text, base)
    wrong = undamaged(folder / 'run')
    if one.code != code or not found or ('Traceback' in one.text and not group):
        wrong.append(f'exit code {one.code}: {one.text[-2000:]}')
    again = command((*arguments, '--resume'), folder / 'two.log')
    command((*TRAIN, folder / 'goal.py', '--work-dir', folder / 'goal'), folder / 'goal.log')
    return _row(name, code, said, wrong, same_weights(folder / 'run' / LAST, folder / 'goal' / LAST), again.text)


def _row(name: str, code: int, said: str, wrong: list[str], same: bool, text: str) -> Row:
    if not same:
        wrong.append(f'not the same weights: {text[-1000:]}')
    kept = 'NOT AS IT SHOULD BE' if wrong else 'all whole'
    return Row(name, f'exit code {code}: {said}', kept, 'identical continuation' if same else 'OTHER WEIGHTS', wrong)


def _resumed(
    name: str,
    code: int,
    says: str,
    base: Path,
    folder: Path,
    one: Outcome,
    arguments: tuple[object, ...],
    last: str = LAST,
) -> Row:
    """What came of a broken run: the same command resumes it, and again makes one that nothing breaks."""
    said, found = quote(says, one.text, base)
    wrong = undamaged(folder / 'run')
    if one.code != code or not found:
        wrong.append(f'exit code {one.code}: {one.text[-2000:]}')
    again = command((*arguments, folder / 'run', '--resume'), folder / 'two.log')
    command((*arguments, folder / 'goal'), folder / 'goal.log')
    return _row(name, code, said, wrong, same_weights(folder / 'run' / last, folder / 'goal' / last), again.text)


def terminated(base: Path) -> Row:
    """As ``docker stop`` does."""
    says = r'terminated; the last checkpoint is \S*epoch_1\.pth\nto resume, give the same command with --resume'
    return _ended('SIGTERM to tools/train.py with a data worker', signal.SIGTERM, 143, says, base, False)


def terminated_all(base: Path) -> Row:
    """As Slurm does: to every process of the job."""
    says = r'terminated; the last checkpoint is \S*epoch_1\.pth\nto resume, give the same command with --resume'
    return _ended('SIGTERM to tools/train.py and to its data worker', signal.SIGTERM, 143, says, base, True)


def interrupted_all(base: Path) -> Row:
    """As a terminal does on Ctrl-C."""
    says = r'interrupted; the last checkpoint is \S*epoch_1\.pth\nto resume, give the same command with --resume'
    return _ended(
        'Ctrl-C in a terminal, to tools/train.py and to its data worker', signal.SIGINT, 130, says, base, True
    )


def _two_ranks(
    base: Path, name: str, code: int, says: str, fault: tuple[str, ...], until: str | None, send: int | None
) -> Row:
    folder = base / re.sub(r'\W+', '_', name)
    folder.mkdir(parents=True)
    (folder / 'job.py').write_text(CONFIG)
    arguments = (DIST_TRAIN, folder / 'job.py', '2', '--work-dir')
    options = ('--cfg-options', *fault) if fault else ()
    if until:
        (folder / 'job.py').write_text(CONFIG + "custom_hooks = custom_hooks[:1] + [dict(type='Slow')]\n")
    one = command((*arguments, folder / 'run', *options), folder / 'one.log', until, send)
    return _resumed(name, code, says, base, folder, one, arguments)


def killed_rank(base: Path) -> Row:
    """As the system does where memory runs out."""
    says = r'error: the process of rank 1 was ended by SIGKILL.*\n.*no checkpoint is damaged.*--resume'
    fault = tuple(f'custom_hooks.1.{option}' for option in ('kind=SIGKILL', 'at=5', 'rank=1'))
    return _two_ranks(base, 'one of two ranks killed (tools/dist_train.sh)', 137, says, fault, None, None)


def terminated_ranks(base: Path) -> Row:
    """As Slurm or ``docker stop`` end a job of two ranks."""
    says = r'terminated; the last checkpoint is \S*epoch_1\.pth\nto resume, give the same command with --resume'
    name = 'SIGTERM to tools/dist_train.sh with two ranks'
    return _two_ranks(base, name, 143, says, (), 'Epoch(train) [2][2/3]', signal.SIGTERM)


def _mask_rcnn(base: Path, name: str, number: int, code: int, says: str) -> Row:
    """The small Mask R-CNN of the tests, on drawn shapes."""
    from tests._data import make_coco
    from tests.test_tools._small import write_small

    folder = base / re.sub(r'\W+', '_', name)
    folder.mkdir(parents=True)
    config, data = write_small(folder), make_coco(folder / 'my data')
    arguments = (*TRAIN, config, '--data-root', data, '--work-dir')
    one = command((*arguments, folder / 'run'), folder / 'one.log', 'Epoch(train) [2][1/', number)
    row = _resumed(name, code, says, base, folder, one, arguments, 'epoch_2.pth')
    if code < 0:
        row.seen = f'killed by signal {-code}'
    return row


def mask_rcnn_killed(base: Path) -> Row:
    """In the middle of the second epoch."""
    return _mask_rcnn(base, 'Mask R-CNN of mmdet: SIGKILL in mid-epoch', signal.SIGKILL, -9, '')


def mask_rcnn_terminated(base: Path) -> Row:
    """In the middle of the second epoch."""
    says = r'terminated; the last checkpoint is \S*epoch_1\.pth\nto resume, give the same command with --resume'
    return _mask_rcnn(base, 'Mask R-CNN of mmdet: SIGTERM in mid-epoch', signal.SIGTERM, 143, says)


COMMANDS: dict[str, Callable[[Path], Row]] = {
    scenario.__name__: scenario
    for scenario in (
        terminated,
        terminated_all,
        interrupted_all,
        killed_rank,
        terminated_ranks,
        mask_rcnn_killed,
        mask_rcnn_terminated,
    )
}
