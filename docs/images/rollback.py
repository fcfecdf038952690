"""Draws docs/images/rollback.png: what a rollback does to the path of the weights, and the level over the layers."""

from pathlib import Path

import matplotlib
import torch

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from olor_mm.rollback import Rollback, layerwise_penalty

INK, PALE, BLUE, ORANGE = '#1f2937', '#9ca3af', '#2563eb', '#ea580c'


def downstream(theta: torch.Tensor) -> torch.Tensor:
    """A loss of two weights whose minimum lies away from the pre-trained point."""
    return 0.06 * (theta[0] - 4.0) ** 2 + 0.5 * (theta[1] - 2.0 - 0.2 * torch.sin(1.5 * theta[0])) ** 2


def path(level: float) -> torch.Tensor:
    theta = torch.nn.Parameter(torch.tensor([0.0, 0.0]))
    optimizer = torch.optim.SGD([theta], lr=0.12, momentum=0.8)
    Rollback(optimizer, {theta: level})
    points = [theta.detach().clone()]
    for _ in range(120):
        optimizer.zero_grad()
        downstream(theta).backward()
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def draw_paths(ax: Axes) -> None:
    x, y = torch.meshgrid(torch.linspace(-0.7, 5, 120), torch.linspace(-0.7, 3.1, 120), indexing='xy')
    ax.contour(x, y, downstream(torch.stack([x, y])), levels=12, colors=PALE, linewidths=0.6)
    for level, colour, name in ((0.0, ORANGE, 'plain fine-tuning'), (0.03, BLUE, 'with rollback, level 0.03')):
        points = path(level)
        ax.plot(*points.T, color=colour, lw=1.6, marker='o', ms=2.2, label=name)
        ax.plot(*points[-1], color=colour, marker='s', ms=7)
    ax.plot(0, 0, color=INK, marker='*', ms=15)
    ax.annotate(r'$\theta_0$, pre-trained', (0, 0), (0.2, -0.45), color=INK)
    ax.set(title='Two weights, 120 steps', xticks=[], yticks=[])
    ax.legend(loc='lower right', framealpha=0.9, edgecolor='white')


def draw_levels(ax: Axes) -> None:
    n = 12
    for power, style in ((1, '-'), (2, '--'), (4, ':')):
        levels = [layerwise_penalty(i, n, 1e-2, power=power) for i in range(n + 1)]
        ax.plot(range(n + 1), levels, style, color=BLUE, marker='o', ms=3, label=f'power {power}')
    ax.set(title='Level of each layer, max_level 0.01', xlabel='layer i (0 = stem)', ylabel=r'level $\lambda_i$')
    ax.spines[['top', 'right']].set_visible(False)
    ax.legend(frameon=False)


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=[1.25, 1])
    draw_paths(left)
    draw_levels(right)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix('.png'), dpi=130)


if __name__ == '__main__':
    main()
