"""Shows what the demo found: a table on the terminal and in Markdown, the same as JSON, and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLUMNS = {
    'mask_A': 'mask AP on A',
    'mask_B': 'mask AP on B',
    'box_A': 'box AP on A',
    'box_B': 'box AP on B',
    'distance': 'rel. discrepancy',
    'seconds': 's/iter',
}
LABELS = {
    'pretrained': 'pre-trained on A',
    'plain': 'then plain fine-tuning on B',
    'olor': 'then OLOR fine-tuning on B',
}
COLOURS = {'plain': '#d55e00', 'olor': '#0072b2'}
GREY = '#555555'


def markdown_table(rows: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table whose columns also line up as plain text.

    Args:
        rows: For each key of :data:`LABELS` the values by the keys of :data:`COLUMNS`; what is missing shows as '-'.
    """
    first = max(map(len, LABELS.values()))
    lines = [
        f'| {"model":<{first}} | ' + ' | '.join(COLUMNS.values()) + ' |',
        f'|:{"-" * first}-|' + '|'.join('-' * (len(title) + 1) + ':' for title in COLUMNS.values()) + '|',
    ]
    for key, label in LABELS.items():
        cells = [
            f'{rows[key][name]:.3f}'.rjust(len(title)) if name in rows[key] else '-'.rjust(len(title))
            for name, title in COLUMNS.items()
        ]
        lines.append(f'| {label:<{first}} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def verdict(rows: dict[str, dict[str, float]]) -> str:
    """What the table says in words, whichever way it came out."""
    lines = []
    for title, key, more, less in (
        ('Forgetting (mask AP on A)', 'mask_A', 'OLOR forgot less', 'OLOR forgot more'),
        ('Learning (mask AP on B)', 'mask_B', 'OLOR learned more', 'OLOR learned less'),
    ):
        before, plain, olor = (rows[name][key] for name in LABELS)
        difference = olor - plain
        said = 'no difference' if abs(difference) < 5e-4 else f'{more if difference > 0 else less} ({difference:+.3f})'
        lines.append(
            f'{title}: {before:.3f} before, {plain:.3f} after plain fine-tuning, {olor:.3f} with OLOR: {said}.'
        )
    return '\n'.join(lines)


def write(folder: Path, results: dict[str, Any], examples: dict[str, list[Path]]) -> list[Path]:
    """Writes ``results.json``, ``results.md`` and ``curves.png``.

    Args:
        folder: Where to.
        results: ``rows`` as for :func:`markdown_table`, ``curves`` (points by run) and ``settings`` (text by name).
        examples: Some image files of each domain, for the picture.

    Returns:
        The three files.
    """
    settings = '\n'.join(f'- {key}: {value}' for key, value in results['settings'].items())
    (folder / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
    (folder / 'results.md').write_text(
        f'# Two domains: what fine-tuning on B leaves of A\n\n{markdown_table(results["rows"])}\n\n'
        f'{verdict(results["rows"])}\n\n![AP on A and on B](curves.png)\n\n{settings}\n'
    )
    draw(folder / 'curves.png', results, examples)
    return [folder / name for name in ('results.json', 'results.md', 'curves.png')]


def draw(file: Path, results: dict[str, Any], examples: dict[str, list[Path]]) -> None:
    """Draws AP on A and on B over the iterations of fine-tuning, below some images of each domain."""
    with plt.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure, axes = plt.subplots(2, 2, figsize=(10, 5.6), height_ratios=[1, 3], layout='constrained', squeeze=False)
        titles = {'A': 'Domain A: pre-trained on it, not seen again', 'B': 'Domain B: fine-tuned on it'}
        for column, domain in enumerate('AB'):
            _strip(axes[0, column], examples[domain])
            axes[0, column].set_title(titles[domain], fontsize=11)
            _panel(axes[1, column], domain, results)
        top = max(axis.get_ylim()[1] for axis in axes[1])
        for axis in axes[1]:
            axis.set_ylim(-0.02 * top, top)
        handles, labels = axes[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), frameon=False)
        figure.savefig(file, dpi=130)
        plt.close(figure)


def _panel(axis: Axes, domain: str, results: dict[str, Any]) -> None:
    for run, name in (('plain', 'plain'), ('olor', 'OLOR')):
        points = results['curves'][run]
        x = [point['iteration'] for point in points]
        for kind, style in (('mask', dict(marker='o', markersize=3.5)), ('box', dict(linestyle=':'))):
            y = [point[f'{kind}_{domain}'] for point in points]
            axis.plot(x, y, color=COLOURS[run], label=f'{name}, {kind} AP', linewidth=1.8, clip_on=False, **style)
    before = results['curves']['plain'][0][f'mask_{domain}']
    axis.axhline(before, color=GREY, linewidth=0.8, linestyle='--', label='before fine-tuning, mask AP')
    axis.set_xlabel('iteration of fine-tuning on B')
    axis.set_ylabel(f'AP on {domain} (validation)')
    axis.set_xlim(left=0)
    axis.grid(color='#e6e6e6', linewidth=0.8)
    axis.set_axisbelow(True)


def _strip(axis: Axes, files: list[Path]) -> None:
    """Images side by side with a white gap."""
    images = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]
    padded = [cv2.copyMakeBorder(image, 0, 0, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255)) for image in images]
    axis.imshow(cv2.hconcat(padded), interpolation='nearest')
    axis.axis('off')
