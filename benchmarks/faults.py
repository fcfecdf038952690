"""Breaks a small real training run in every way we could think of, and says what came of each.

    python benchmarks/faults.py

Writes ``faults.md`` and ``faults.json``, and quotes the table in docs/faults.md; ends with exit code 1 if anything came
out otherwise than it should. 5 minutes on two idle cores, half an hour on busy ones. A full and a read-only file system
are mounted for it where the rights suffice (root); elsewhere a limit on file sizes takes their place.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / 'results'
for _folder in (BENCHMARKS.parent, BENCHMARKS):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))


def anchors(file: Path) -> dict:
    """theta_0 in a checkpoint, by index of the parameter."""
    from olor_mm.engine import load_from_local

    state = load_from_local(str(file), 'cpu')['optimizer']['state']
    return {index: kept['rollback_anchor'] for index, kept in state.items() if 'rollback_anchor' in kept}


def jobs(base: Path, times: int | None) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name of each scenario and what runs it, after the run that nothing breaks."""
    from _faults import commands, harness, scenarios

    goal = harness.reference(base)
    for case in scenarios.INTERRUPTED:
        yield case.name, partial(harness.interrupted, case, base, goal, times and min(case.times, times))
    for harm in scenarios.HARMED:
        yield harm.name, partial(harness.harmed, harm, base, goal)
    for first, second in scenarios.RANKS:
        yield f'processes {first} {second}', partial(harness.world, first, second, base, anchors)
    for name, run in commands.COMMANDS.items():
        yield name, partial(run, base)


def rows_of(base: Path, only: re.Pattern[str], times: int | None) -> Iterator[Any]:
    """Run what is asked for, and say how it goes."""
    start = time.monotonic()
    for name, job in jobs(base, times):
        if not only.search(name):
            continue
        row = job()
        print(f'{time.monotonic() - start:6.0f} s  {"WRONG" if row.wrong else "ok   "}  {row.fault}', flush=True)
        for line in row.wrong:
            print(f'    {line}', file=sys.stderr, flush=True)
        yield row


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression of the command line."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no regular expression: {error}') from None


def main() -> int:
    """Run what is asked for and write the table."""
    from _common import machine
    from _faults import mounts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder for faults.md and faults.json')
    parser.add_argument('--only', type=pattern, default='', help='regular expression on the names of the scenarios')
    parser.add_argument('--times', type=int, help='how often the random ones are done; default: 20')
    args = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background, where Ctrl-C is ignored, and so it would be by everything that is started here.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='olor_mm faults ') as folder:
        rows = [vars(row) for row in rows_of(Path(folder), args.only, args.times)]
    result = {
        'machine': machine('cpu'),
        'date': time.strftime('%Y-%m-%d'),
        'mounted': mounts.mounts(),
        'seconds': round(time.monotonic() - start),
        'rows': rows,
    }
    write(result, args.out, bool(args.only.pattern))
    return int(any(row['wrong'] for row in rows))


def write(result: dict, out: Path, again: bool) -> None:
    """Write the report; what was done again takes the place of the former rows."""
    out.mkdir(parents=True, exist_ok=True)
    if again and (out / 'faults.json').is_file():
        former = json.loads((out / 'faults.json').read_text())
        anew = {row['fault']: row for row in result['rows']}
        result = {**former, 'rows': [anew.get(row['fault'], row) for row in former['rows']]}
    (out / 'faults.json').write_text(json.dumps(result, indent=2) + '\n')
    (out / 'faults.md').write_text(table(result))
    print(table(result))
    if out == RESULTS:
        quote(table(result))


def quote(report: str) -> None:
    """Put the report into docs/faults.md."""
    page = BENCHMARKS.parent / 'docs' / 'faults.md'
    before, begin, rest = page.read_text().partition('<!-- report -->\n')
    _, end, after = rest.partition('<!-- end of report -->\n')
    page.write_text(f'{before}{begin}\n{report}\n{end}{after}')


def table(result: dict) -> str:
    """The report as Markdown."""
    header = ('fault', 'what the user sees', 'checkpoints', 'the run, or `--resume`')
    lines = ['| ' + ' | '.join(header) + ' |', '|---' * len(header) + '|']
    for row in result['rows']:
        cells = (row['fault'], row['seen'], row['kept'], row['then'])
        lines.append('| ' + ' | '.join(cell.replace('|', '\\|').replace('<', '\\<') for cell in cells) + ' |')
    about = ', '.join(f'{key} {value}' for key, value in result['machine'].items())
    disk = 'file systems mounted' if result['mounted'] else 'no file systems mounted: limits on file sizes instead'
    return '\n'.join([*lines, '', f'{about}; {disk}; {result["date"]}, {result["seconds"]} s.', ''])


if __name__ == '__main__':
    sys.exit(main())
