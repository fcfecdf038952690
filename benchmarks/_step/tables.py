"""The result of `benchmarks/step.py` as tables and as a picture; from its JSON alone."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _common import described, spread, table

from .labels import LABELS, ratio_text, share_ratio, size_text, verdict_text

NOT_MEASURED = 'not measured'
#: What the summary shows of each set, by device.
SUMMARY = {'rollback foreach': 'pull of its own', 'rollback single_pass': 'single pass'}


def detail(result: Mapping[str, Any], name: str) -> str:
    """One set: a row for each optimizer and variant."""
    part = result['sets'][name]
    about, device = part['about'], result['device']
    each = 'kernels' if device == 'cuda' else 'operators'
    header = ['step', 'ms', 'spread', 'ratio (quartiles)', 'of the pulled share', 'bytes', 'of the limit', each]
    rows = []
    for kind, found in part['optimizers'].items():
        for variant, values in found['variants'].items():
            rows.append([_label(kind, variant, values), *_cells(variant, values, about)])
    lines = [
        f'{name}: {about["parameters"]:,} trained parameters in {about["tensors"]} tensors, of which '
        f'{about["pulled"]:,} ({about["pulled"] / about["parameters"]:.0%}) in {about["pulled tensors"]} tensors are '
        f'pulled, at {about["distinct levels"]} levels.'
    ]
    return '\n\n'.join([*lines, table(rows, [*header, 'memory in the step', 'state besides'])])


def _label(kind: str, variant: str, values: Mapping[str, Any]) -> str:
    return f'{kind} {LABELS[variant]}{" **" + values["note"] + "**" if values["note"] else ""}'


def _cells(variant: str, values: Mapping[str, Any], about: Mapping[str, int]) -> list[str]:
    between = spread(values['seconds'])
    share = f'{share_ratio(values["ratio"][1], about):.2f}' if variant.startswith('rollback') else '-'
    return [
        f'{statistics.median(values["seconds"]) * 1e3:.1f}',
        '-' if math.isnan(between) else f'{between:.0%}',
        ratio_text(values['ratio']),
        share,
        f'{values["bytes"] / about["parameters"]:.1f}{"" if values["bytes by"] == "formula" else " (counted)"}',
        f'{values["of the limit"]:.0%}',
        str(values['launches']),
        size_text(values['peak bytes']),
        size_text(values['state bytes']),
    ]


def noise(result: Mapping[str, Any]) -> str:
    """Where nothing can be told: a sentence."""
    parts = [(name, kind, f) for name, part in result['sets'].items() for kind, f in part['optimizers'].items()]
    noisy = [(name, kind, found) for name, kind, found in parts if found['noise']['too noisy']]
    medians = [found['noise']['base against itself'][1] for _, _, found in parts]
    said = f'The base step against itself in the same rounds gave medians of {min(medians):.2f} to {max(medians):.2f}.'
    if not noisy:
        return said + ' The machine was calm enough everywhere.'
    where = '; '.join(f'{name} with {kind}' for name, kind, _ in noisy)
    return f'{said} **The machine was too noisy to tell small differences at {len(noisy)} of {len(parts)}:** {where}.'


def bandwidth(result: Mapping[str, Any]) -> str:
    """What copies and additions reached: a sentence."""
    moves = [found['moves'] for part in result['sets'].values() for found in part['optimizers'].values()]
    rates = {name: [move[name]['bytes a second'] / 1e9 for move in moves] for name in moves[0]}
    said = [f'{"an" if name[0] == "a" else "a"} {name} {min(r):.1f} to {max(r):.1f} GB/s' for name, r in rates.items()]
    return f'In the same rounds as many numbers were moved, by {" and by ".join(said)}.'


def target_rows(result: Mapping[str, Any]) -> list[list[str]]:
    return [
        [row['target'], row.get('set', 'all'), row.get('optimizer', 'all'), *verdict_text(row)]
        for row in result['targets']
    ]


def targets(result: Mapping[str, Any]) -> str:
    """The verdicts."""
    return table(target_rows(result), ['target', 'parameters', 'optimizer', 'limit', 'measured', 'verdict'])


def summary(results: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The ratio to the fused base step; a column for each device, which has no result yet if it is None."""
    known = next(result for result in results.values() if result is not None)
    devices = {'cpu': 'CPU', 'cuda': 'GPU'}
    header = ['parameters', 'optimizer, fused']
    header += [f'{devices[device]}: {said}' for device in results for said in SUMMARY.values()]
    rows = []
    for name, part in known['sets'].items():
        for kind in part['optimizers']:
            cells = [_summary_cell(result, name, kind, v) for result in results.values() for v in SUMMARY]
            rows.append([name, kind, *cells])
    return table(rows, header)


def _summary_cell(result: Mapping[str, Any] | None, name: str, kind: str, variant: str) -> str:
    if result is None or name not in result['sets']:
        return NOT_MEASURED
    found = result['sets'][name]['optimizers'][kind]
    if found['variants'][variant]['note']:
        return 'fell back'
    noisy = ', noisy' if found['noise']['too noisy'] else ''
    return f'{found["variants"][variant]["ratio"][1]:.2f}{noisy}'


def rules(result: Mapping[str, Any]) -> str | None:
    """What the relatives of the rollback cost beside it, with AdamW; None where they were not measured."""
    rows = []
    for name, part in result['sets'].items():
        variants = part['optimizers'].get('AdamW', {}).get('variants', {})
        if 'spd' not in variants:
            return None
        for key in ('fused', 'rollback foreach', 'spd', 'projection'):
            cells = _cells(key, variants[key], part['about'])
            rows.append([name, _label('AdamW', key, variants[key]), cells[0], cells[2], *cells[4:5], *cells[7:]])
    each = 'kernels' if result['device'] == 'cuda' else 'operators'
    header = ['parameters', 'step', 'ms', 'ratio (quartiles)', 'bytes', each, 'memory in the step', 'state besides']
    return '\n\n'.join([table(rows, header), described(result['machine'])])


def page(result: Mapping[str, Any]) -> str:
    """All of it, as it is saved beside the JSON."""
    parts = [targets(result), noise(result), bandwidth(result)]
    parts += [detail(result, name) for name in result['sets']]
    return '\n\n'.join([*parts, described(result['machine'])]) + '\n'


def draw(result: Mapping[str, Any], file: Path) -> None:
    """The ratios as bars, one panel a set, and the ratio that the bytes alone would give."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(result['sets']), figsize=(13, 5.2), sharey=True, squeeze=False)
    colours = {'AdamW': '#2563eb', 'Adam': '#93c5fd', 'SGD': '#ea580c'}
    names = [name for name in LABELS if name != 'fused again']
    for ax, (title, part) in zip(axes[0], result['sets'].items(), strict=True):
        for i, (kind, found) in enumerate(part['optimizers'].items()):
            base = found['variants']['fused']['bytes']
            shown = [(y, found['variants'][n]) for y, n in enumerate(names) if n in found['variants']]
            at = [y + 0.27 * (i - 1) for y, _ in shown]
            ax.barh(at, [v['ratio'][1] for _, v in shown], 0.25, color=colours[kind], label=kind)
            ax.plot([v['bytes'] / base for _, v in shown], at, '|', color='#1f2937', ms=8, mew=1.4)
        ax.axvline(1, color='#9ca3af', lw=0.8, zorder=0)
        ax.set(title=title, xlabel='time, fused step = 1', yticks=range(len(names)))
        ax.set_yticklabels([LABELS[name].replace('`', '') for name in names])
        ax.spines[['top', 'right']].set_visible(False)
    axes[0][0].invert_yaxis()
    axes[0][-1].plot([], [], '|', color='#1f2937', ms=8, mew=1.4, label='by bytes')
    figure.suptitle(f'One step of the optimizer, {result["machine"]["device"]}', fontsize=10)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.legend(*axes[0][-1].get_legend_handles_labels(), frameon=False, loc='lower center', ncols=4)
    figure.savefig(file, dpi=110)
    plt.close(figure)
