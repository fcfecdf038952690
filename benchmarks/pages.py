"""Puts what lies in benchmarks/results into README.md and docs: python benchmarks/pages.py [--check].

A page says where: between `<!-- made by benchmarks/pages.py: NAME -->` and `<!-- end -->`. NAME is one of the blocks
below, or a file of benchmarks/results such as precision_cpu.md, of which the first table is taken. The pictures of
docs/images that show results are drawn anew. What has no result yet is left as it is. With --check nothing is written;
exit status 1 says that a page is behind.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anchor_memory
import dtl_memory
import growth
from _common import described, table
from _step import tables
from _step.labels import LABELS

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / 'benchmarks' / 'results'
IMAGES = REPO / 'docs' / 'images'
_PLACE = re.compile(r'(<!-- made by benchmarks/pages\.py: (.+?) -->\n)(.*?)(<!-- end -->)', re.DOTALL)
DEVICES = ('cpu', 'cuda')
#: What the README shows of each step, for one set and these optimizers.
README_SET, README_OPTIMIZERS = 'ViT-B classifier', ('AdamW', 'SGD')


def result(name: str) -> dict[str, Any] | None:
    """A saved result, None where there is none (or one of an older form, which did not say its device)."""
    file = RESULTS / f'{name}.json'
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found if 'device' in found else None


def _block(name: str, device: str, make: Callable[[Mapping[str, Any]], str | None]) -> Callable[[], str | None]:
    def text() -> str | None:
        found = result(f'{name}_{device}')
        return None if found is None else make(found)

    return text


def step_summary() -> str | None:
    found = {device: result(f'step_{device}') for device in DEVICES}
    return tables.summary(found) if any(found.values()) else None


def _details(found: Mapping[str, Any]) -> str:
    parts = [tables.noise(found), tables.bandwidth(found), *(tables.detail(found, name) for name in found['sets'])]
    if (IMAGES / f'step_{found["device"]}.png').is_file():
        parts.append(f'![The time of each step, the fused one being 1](images/step_{found["device"]}.png)')
    return '\n\n'.join([*parts, described(found['machine'])])


def step_readme() -> str | None:
    """One set, short; and whether a GPU was measured."""
    found, cuda = result('step_cpu'), result('step_cuda')
    part = None if found is None else found['sets'].get(README_SET)
    if found is None or part is None or not {*README_OPTIMIZERS} <= part['optimizers'].keys():
        return None
    header = ['step', *(f'{kind}: {told}' for kind in README_OPTIMIZERS for told in ('ms', 'ratio'))]
    rows = []
    for name in LABELS:
        if name != 'fused again' and name in part['optimizers'][README_OPTIMIZERS[0]]['variants']:
            rows.append([LABELS[name], *(c for kind in README_OPTIMIZERS for c in _short(part, kind, name))])
    about = part['about']
    said = f'{README_SET}, {about["parameters"]:,} parameters, {about["pulled"]:,} of them pulled at '
    said += f'{about["distinct levels"]} levels; medians of {found["rounds"]} rounds. '
    said += tables.noise({'sets': {README_SET: part}})
    gpu = 'On a GPU it was not measured yet.' if cuda is None else 'The page has the figures of a GPU too.'
    return '\n\n'.join([table(rows, header), f'{said} {described(found["machine"])} {gpu}'])


def _short(part: Mapping[str, Any], kind: str, name: str) -> list[str]:
    values = part['optimizers'][kind]['variants'].get(name)
    if values is None:
        return ['-', '-']
    fell_back = ' (fell back)' if values['note'] else ''
    return [f'{statistics.median(values["seconds"]) * 1e3:.1f}', f'{values["ratio"][1]:.2f}{fell_back}']


BLOCKS: dict[str, Callable[[], str | None]] = {
    'step, summary': step_summary,
    'step, README': step_readme,
    'step, targets on the CPU': _block('step', 'cpu', tables.targets),
    'step, targets on a GPU': _block('step', 'cuda', tables.targets),
    'step, CPU': _block('step', 'cpu', _details),
    'step, GPU': _block('step', 'cuda', _details),
    'step, rules on the CPU': _block('step', 'cpu', tables.rules),
    'step, rules on a GPU': _block('step', 'cuda', tables.rules),
    'growth, CPU': _block('growth', 'cpu', growth.page),
    'growth, GPU': _block('growth', 'cuda', growth.page),
    'dtl memory, CPU': _block('dtl_memory', 'cpu', dtl_memory.page),
    'dtl memory, GPU': _block('dtl_memory', 'cuda', dtl_memory.page),
    'anchor memory, CPU': _block('anchor_memory', 'cpu', anchor_memory.page),
    'anchor memory, GPU': _block('anchor_memory', 'cuda', anchor_memory.page),
}

#: Files of benchmarks/results that a page shows with the machine below the table.
WHOLE = (
    *('train_cpu.md', 'train_cuda.md', 'startup_cpu.md', 'startup_resume_cpu.md', 'precision_cost_cpu.md'),
    *('compare_deit-tiny.md', 'search_deit-tiny.md'),
)


def draw_search(name: str) -> None:
    """The picture of a search of tools/search.py."""
    from olor_mm.tooling.figures import save_charts
    from olor_mm.tooling.search.metric import Metric
    from olor_mm.tooling.search.report import charts
    from olor_mm.tooling.search.scores import judge, score_of
    from olor_mm.tooling.search.space import Space

    file = RESULTS / f'{name}.json'
    if not file.is_file():
        return
    found = json.loads(file.read_text())
    metric = Metric(found['metric'], found['mode'] == 'max')
    scores = [score_of(trial) for trial in found['trials']]
    points = [score.point for score in scores if not score.point.is_plain]
    space = Space.make('paper', [point.level for point in points], [point.power for point in points])
    with tempfile.TemporaryDirectory() as folder:
        drawn = save_charts(charts(scores, judge(scores, metric, space), metric, space), folder, name, found['config'])
        shutil.copy(drawn[0], IMAGES / f'{name}.png')


def block(name: str) -> str | None:
    """What belongs between the comments of that name; None if its result is not there."""
    if name in BLOCKS:
        made = BLOCKS[name]()
        return None if made is None else made.rstrip('\n')
    if name in WHOLE:
        return (RESULTS / name).read_text().rstrip('\n') if (RESULTS / name).is_file() else None
    if name.endswith('.md'):
        file = RESULTS / name
        return file.read_text().split('\n\n')[0] if file.is_file() else None
    raise SystemExit(f'{name!r} is neither a file NAME.md of {RESULTS} nor a block: {"; ".join(BLOCKS)}')


def rendered(text: str) -> str:
    """A page with its blocks made anew; those without a result are left as they are."""

    def made(match: re.Match[str]) -> str:
        new = block(match[2])
        return match[0] if new is None else f'{match[1]}{new}\n{match[4]}'

    return _PLACE.sub(made, text)


def pages() -> list[Path]:
    """Those with blocks."""
    files = [REPO / 'README.md', *sorted((REPO / 'docs').glob('*.md'))]
    return [page for page in files if _PLACE.search(page.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, and fail if something would be written')
    args = parser.parse_args()
    for device in DEVICES:
        found = result(f'step_{device}')
        if found is not None and not args.check:
            tables.draw(found, IMAGES / f'step_{device}.png')
    if not args.check:
        draw_search('search_deit-tiny')
    behind = [page for page in pages() if rendered(page.read_text()) != page.read_text()]
    for page in behind:
        print(page.relative_to(REPO))
        if not args.check:
            page.write_text(rendered(page.read_text()))
    sys.exit(1 if args.check and behind else 0)


if __name__ == '__main__':
    main()
