"""What is broken and what has to come of it, as data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ['HARMED', 'INTERRUPTED', 'RANKS', 'Harmed', 'Interrupted']

IDENTICAL, ERROR, GOES_ON = 'identical continuation', 'error', 'goes on'


@dataclass(frozen=True)
class Interrupted:
    """A fault while the job runs; then ``--resume``.

    Attributes:
        name: As the table calls it.
        fault: Options of the hook ``Fault``; without ``at`` and ``size`` they are drawn.
        code: The exit code, negative for a signal.
        says: A regular expression on what is printed; None where the process could not speak.
        times: How often it is done in the whole harness.
        options: Further options of the run that breaks.
        disk: Size of a file system of its own for the checkpoints, kB; None for the work dir.
        fast: Whether the tests do it, too.
    """

    name: str
    fault: dict = field(default_factory=dict)
    code: int = 0
    says: str | None = None
    times: int = 1
    options: Sequence[str] = ()
    disk: int | None = None
    fast: bool = True


_RESUME = r'the last checkpoint is \S*epoch_\d\.pth\nto resume, give the same command with --resume'
_NOT_SAVED = (
    r'error: \S*\.pth could not be saved: {}\. Nothing saved earlier was touched; '
    r'(?:the last complete checkpoint is \S*epoch_\d\.pth|there is no earlier checkpoint)\..* --resume'
)
_NAN = (
    r'error: loss is nan in iteration 15, and it has reached NaN or infinity in \d+ tensors .* '
    r'The last checkpoint is \S*epoch_2\.pth, from before: resume from there'
)
_READER = r"OSError: \[Errno 5\] Input/output error: 'image_\d+\.jpg'"

INTERRUPTED = [
    Interrupted('SIGKILL after a random iteration', dict(kind='SIGKILL'), code=-9, times=20),
    Interrupted(
        'killed inside the write of a checkpoint, at a random byte', dict(kind='killed write'), code=-25, times=20
    ),
    Interrupted('SIGTERM', dict(kind='SIGTERM', at=15), code=143, says=f'terminated; {_RESUME}'),
    Interrupted('Ctrl-C (SIGINT)', dict(kind='SIGINT', at=15), code=130, says=f'interrupted; {_RESUME}'),
    Interrupted(
        'disk full at save: the file system has room for half of a checkpoint',
        dict(kind='full', at=4, size=100_000),
        code=2,
        says=_NOT_SAVED.format('(?:No space left on device|File too large)'),
        disk=1500,
    ),
    Interrupted(
        'a limit on file sizes at save, the write breaks off at a random byte',
        dict(kind='short write'),
        code=2,
        says=_NOT_SAVED.format('File too large'),
        times=5,
    ),
    Interrupted(
        'checkpoints on a file system that has become read-only',
        dict(kind='read-only', at=4),
        code=2,
        says=_NOT_SAVED.format('(?:Read-only file system|File too large)'),
        disk=1500,
        fast=False,
    ),
    Interrupted(
        'a file in the place of the folder for checkpoints',
        dict(kind='no folder', at=4),
        code=2,
        says=_NOT_SAVED.format('(?:Not a directory|File exists)'),
        disk=0,
        fast=False,
    ),
    Interrupted('NaN in the images of one iteration', dict(kind='image of nan', at=15), code=2, says=_NAN),
    Interrupted(
        'infinity in the images of one iteration',
        dict(kind='image of inf', at=15),
        code=2,
        says=_NAN,
        fast=False,
    ),
    Interrupted(
        'the data set raises, in the main process',
        code=1,
        says=_READER,
        options=('train_dataloader.dataset.fails_at=110',),
    ),
    Interrupted(
        'the data set raises, in a worker',
        code=1,
        says=_READER,
        options=('train_dataloader.dataset.fails_at=30', 'train_dataloader.num_workers=1', 'train_cfg.max_epochs=4'),
        fast=False,
    ),
]


@dataclass(frozen=True)
class Harmed:
    """A run of two epochs, something done to its files, and then ``--resume`` with these options to the fourth epoch.

    Attributes:
        name: As the table calls it.
        harm: Key of ``HARMS``.
        options: ``--cfg-options`` of the resumed run.
        ends: ``IDENTICAL`` to the run that never stopped, ``ERROR``, or ``GOES_ON`` with other weights, as asked for.
        says: A regular expression on what the resumed run prints.
        first: What is added to the config of the first run.
        resume: What follows ``--resume``.
        fast: Whether the tests do it, too.
    """

    name: str
    harm: str = 'nothing'
    options: Sequence[str] = ()
    ends: str = IDENTICAL
    says: str = r'--resume: going on from \S*epoch_2\.pth'
    first: str = ''
    resume: Sequence[str] = ()
    fast: bool = True


_NOT_USED = (
    r'--resume: \S*epoch_2\.pth is not used: {}[^\n]*\n.*--resume: going on from \S*epoch_1\.pth: it is the newest'
)
_RECORD = r'--resume: going on from \S*epoch_2\.pth: \S*last_checkpoint is {}, and this is the newest'
_OTHER = r'the run goes on from a checkpoint that was saved otherwise:\n  {}'
_PLAIN = "optim_wrapper = dict(optimizer=optim_wrapper['optimizer'])\n"
_MISSING = r'error: the run is resumed, but its checkpoint has no theta_0 .*Set optim_wrapper\.rollback\.anchor'

HARMED = [
    Harmed('nothing, but the end of the second epoch'),
    Harmed('the latest checkpoint is cut off', 'cut', says=_NOT_USED.format('its end is missing')),
    *(
        Harmed(
            f'a bit of the latest checkpoint is flipped, in {where}',
            f'flip {where}',
            says=_NOT_USED.format(''),
            fast=where == 'a weight',
        )
        for where in ('a weight', 'theta_0', 'the pickle', 'the table of contents')
    ),
    Harmed(
        'the checkpoint given to --resume is cut off',
        'cut',
        ends=ERROR,
        says=r'error: the checkpoint of --resume is damaged: its end is missing\n.*\n'
        r'  the newest one of the work dir that is whole: --resume \S*epoch_1\.pth',
        resume=('{folder}/epoch_2.pth',),
    ),
    Harmed(
        'all checkpoints are cut off',
        'all cut',
        ends=ERROR,
        says=r'error: --resume: no checkpoint in \S* can be used\n',
        fast=False,
    ),
    Harmed('last_checkpoint is missing', 'no record', says=_RECORD.format('missing')),
    Harmed('last_checkpoint is empty', 'empty record', says=_RECORD.format('unreadable'), fast=False),
    Harmed('last_checkpoint is garbled', 'garbled record', says=_RECORD.format('unreadable'), fast=False),
    Harmed(
        'last_checkpoint names a missing file',
        'record of nothing',
        says=r'--resume: \S*epoch_9\.pth is not used: it is missing\n.*going on from \S*epoch_2\.pth',
        fast=False,
    ),
    Harmed(
        'checkpoint of a model with other shapes',
        ends=ERROR,
        options=('model.classes=5',),
        says=r'error: the run cannot go on from \S*epoch_2\.pth, which is the checkpoint of another model: of 16 '
        r'trained parameters it has 2 in another shape: head\.weight \(4, 24\) there, \(5, 24\) here, head\.bias',
    ),
    Harmed(
        'checkpoint of a run with another rollback.index',
        ends=GOES_ON,
        options=('optim_wrapper.rollback.index=tensor',),
        says=_OTHER.format(r"optim_wrapper\.rollback\.index: 'layer' in the checkpoint, 'tensor' now"),
    ),
    Harmed(
        'checkpoint of a run with other levels',
        ends=GOES_ON,
        options=('optim_wrapper.rollback.max_level=0.2',),
        says=_OTHER.format(r'optim_wrapper\.rollback\.max_level: 0\.1 in the checkpoint, 0\.2 now'),
    ),
    Harmed(
        'checkpoint of a run with fewer roots',
        ends=ERROR,
        options=('optim_wrapper.rollback.roots=backbone,head',),
        says=r'error: 2 of 16 parameters have been trained already, but their pre-trained values \(theta_0\) were not '
        r'saved with the optimizer: head\.weight, head\.bias\.',
        fast=False,
    ),
    Harmed(
        'checkpoint of a run without OLOR',
        ends=ERROR,
        first=_PLAIN,
        says=_MISSING,
    ),
    Harmed(
        'checkpoint without the optimizer, as save_optimizer=False writes it', 'no optimizer', ends=ERROR, says=_MISSING
    ),
    Harmed('checkpoint of an older olor_mm, with the names of what is pulled back alone', 'names alone', fast=False),
    Harmed(
        'another learning rate in the config',
        options=('optim_wrapper.optimizer.lr=0.01',),
        says=_OTHER.format(
            r'the learning rate of 1 of 1 parameter groups is 0\.01 in the config \(times lr_mult\), '
            r"but the checkpoint's 0\.05 goes on"
        ),
    ),
    Harmed(
        'another schedule in the config',
        options=('param_scheduler.1.T_max=9',),
        says=_OTHER.format(r"param_scheduler is .*T_max=9.* in the config, but the checkpoint's .*T_max=18.* goes on"),
    ),
]

#: Processes of the first run, and of the resumed one.
RANKS = [(1, 2), (2, 1), (2, 2)]
