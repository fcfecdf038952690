"""Runs the scenarios and says what came of each."""

import random
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from .harm import HARMS
from .job import CONFIG, EPOCHS, ITERATIONS, digests
from .mounts import make_writable, small_disk
from .runs import Outcome, ranks, same_weights, train, undamaged
from .scenarios import ERROR, GOES_ON, IDENTICAL, Harmed, Interrupted

__all__ = ['Row', 'harmed', 'interrupted', 'reference', 'world']

LAST = f'epoch_{EPOCHS}.pth'


@dataclass
class Row:
    """A line of the table.

    Attributes:
        fault: What was broken.
        seen: What the user sees: exit code and message.
        kept: What became of the checkpoints that were complete; '-' where a run that goes on replaces them as asked.
        then: What came of ``--resume``, or of the run itself.
        wrong: What is not as it should be; empty where all is well.
    """

    fault: str
    seen: str
    kept: str
    then: str
    wrong: list[str]


def reference(base: Path) -> Path:
    """The run that is never broken; its last checkpoint."""
    outcome = train(base / 'reference')
    if outcome.code != 0:
        raise RuntimeError(f'the job itself fails:\n{outcome.text[-3000:]}')
    return base / 'reference' / LAST


def _options(**options: object) -> list[str]:
    return [f'custom_hooks.1.{key}={value}' for key, value in options.items() if value is not None]


def _with(options: Sequence[str]) -> list[str]:
    return ['--cfg-options', *options] if options else []


def quote(pattern: str | None, text: str, base: Path) -> tuple[str, bool]:
    """What the pattern finds, on one line and without the folders of this machine; and whether it was found."""
    if pattern is None:
        return '', True
    text = re.sub(rf'{re.escape(str(base))}/(?:[\w.-]+/)*', '', text)
    found = re.search(pattern, re.sub(r'^\S+ \S+ - mmengine - \w+ - ', '', text, flags=re.MULTILINE))
    if not found:
        return '', False
    return re.sub(r'\s+', ' ', found[0]).removeprefix('error: ').strip(), True


def interrupted(case: Interrupted, base: Path, goal: Path, times: int | None = None, seed: int = 0) -> Row:
    """Break the job as often as told, and resume it each time.

    Args:
        case: The scenario.
        base: A folder for the runs, with that of :func:`reference` in it.
        goal: The last checkpoint of the run that was never broken.
        times: How often. Defaults to what the scenario says.
        seed: For what is drawn. Defaults to 0.
    """
    draw = random.Random(f'{case.name} {seed}')
    size = goal.stat().st_size
    times = times or case.times
    wrong, same, said = [], 0, ''
    for number in range(times):
        folder = base / re.sub(r'\W+', '_', case.name)[:40] / f'run_{number}'
        fault = dict(case.fault)
        if 'at' not in fault and fault:
            # Saves: of every epoch, and of new best ones; the last iteration ends the run.
            fault['at'] = draw.randrange(1, EPOCHS * ITERATIONS) if fault['kind'] == 'SIGKILL' else draw.randrange(1, 6)
        if fault.get('kind') in ('killed write', 'short write'):
            fault['size'] = draw.randrange(size)
        one, text, again = _once(case, fault, folder)
        said_now, found = quote(case.says, one.text, base)
        said = said or said_now
        if one.code != case.code or not found:
            wrong.append(f'{folder.name}: exit code {one.code}, said: {one.text[-600:]}')
        wrong += text
        if again.code == 0 and same_weights(_last(folder, case), goal):
            same += 1
        else:
            wrong.append(f'{folder.name}: resumed with exit code {again.code}: {again.text[-600:]}')
    count = f' ({same} of {times})' if times > 1 else ''
    then = IDENTICAL if same else 'not the same weights'
    return Row(case.name, _seen(case.code, said), _kept(wrong), then + count, wrong)


def _last(folder: Path, case: Interrupted) -> Path:
    return (folder if case.disk is None else folder.with_name(f'disk_of_{folder.name}') / folder.name) / LAST


def _once(case: Interrupted, fault: dict, folder: Path) -> tuple[Outcome, list[str], Outcome]:
    """The broken run, what is damaged, and the resumed run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if case.disk is None:
        one = train(folder, *_with([*_options(**fault), *case.options]))
        return one, undamaged(folder), train(folder, '--resume')
    # Only the checkpoints lie on a disk of their own: the log must be free to say what happened.
    disk = folder.with_name(f'disk_of_{folder.name}')
    checkpoints = disk / folder.name
    out = [f'default_hooks.checkpoint.out_dir={disk}']
    with small_disk(checkpoints, case.disk) if case.disk else nullcontext(True) as mounted:
        if not mounted:
            fault = dict(kind='short write', at=fault['at'], size=fault.get('size') or 1000)
        fault['folder'] = checkpoints
        one = train(folder, *_with([*out, *_options(**fault)]))
        make_writable(checkpoints)
        (checkpoints / 'filler').unlink(missing_ok=True) if checkpoints.is_dir() else checkpoints.unlink()
        moved = checkpoints.with_name(checkpoints.name + '_moved_away')
        if moved.exists():
            moved.rename(checkpoints)
        text = undamaged(folder, checkpoints)
        again = train(folder, '--resume', *_with(out))
        if mounted and case.disk:
            # Beyond the unmounting.
            kept = checkpoints / LAST
            data = kept.read_bytes() if kept.exists() else b''
    if mounted and case.disk and data:
        (checkpoints / LAST).write_bytes(data)
    return one, text, again


def harmed(case: Harmed, base: Path, goal: Path) -> Row:
    """Do something to the files of a run of two epochs, or change the config, and resume."""
    folder = base / re.sub(r'\W+', '_', case.name)[:60]
    config = folder.with_name(f'{folder.name}.py')
    config.write_text(CONFIG + case.first)
    first = train(folder, *_with(['train_cfg.max_epochs=2']))
    config.write_text(CONFIG)
    HARMS[case.harm](folder)
    before = digests(folder)
    resume = [part.format(folder=folder) for part in case.resume]
    again = train(folder, '--resume', *resume, *_with(case.options))
    said, found = quote(case.says, again.text, base)
    wrong = [] if first.code == 0 and found else [f'said: {again.text[-1500:]}']
    last = folder / LAST
    if case.ends == ERROR:
        if again.code != 2 or digests(folder) != before:
            wrong.append(f'exit code {again.code}, {sorted(digests(folder))}')
        return Row(case.name, _seen(2, said), _kept(wrong), ERROR, wrong)
    if again.code != 0 or same_weights(last, goal) != (case.ends == IDENTICAL):
        wrong.append(f'exit code {again.code}, same weights: {same_weights(last, goal)}: {again.text[-600:]}')
    then = IDENTICAL if case.ends == IDENTICAL else f'{GOES_ON} as the config says'
    return Row(case.name, _seen(0, said), _kept(wrong, '-'), then, wrong)


def world(first: int, second: int, base: Path, anchors: Callable[[Path], dict]) -> Row:
    """Save in some processes and resume in others."""
    name = f'{first}_to_{second}'
    start = (ranks if first > 1 else _alone)(base / name, first, '--cfg-options', 'train_cfg.max_epochs=2')
    theta_0 = anchors(base / name / 'epoch_2.pth') if start.code == 0 else {}
    again = (ranks if second > 1 else _alone)(base / name, second, '--resume')
    says = rf'number of processes: {first} in the checkpoint, {second} now; batches are other ones'
    says = says if first != second else None
    said, found = quote(says, again.text, base)
    wrong = [] if start.code == again.code == 0 and found else [f'{start.code}, {again.code}: {again.text[-1500:]}']
    last = base / name / LAST
    if not wrong:
        kept = anchors(last)
        if kept.keys() != theta_0.keys() or any(not bool((kept[key] == theta_0[key]).all()) for key in kept):
            wrong.append('theta_0 is another')
    then = f'{GOES_ON}, with the same theta_0'
    if first == second and not wrong:
        straight = base / f'{name}_straight'
        ranks(straight, second)
        then = IDENTICAL
        if not same_weights(straight / LAST, last):
            wrong.append('not the same weights')
    title = f'saved by {first} process{"es" if first > 1 else ""}, resumed by {second}'
    return Row(title, _seen(0, said), _kept(wrong, '-'), then, wrong)


def _alone(folder: Path, number: int, *options: str) -> Outcome:
    return train(folder, *options)


def _seen(code: int, said: str) -> str:
    how = f'killed by signal {-code}' if code < 0 else f'exit code {code}'
    return f'{how}: {said}' if said else how


def _kept(wrong: Sequence[str], else_: str = 'all complete ones unchanged') -> str:
    return 'NOT AS IT SHOULD BE' if wrong else else_
