"""Charts as one picture, by matplotlib, without a window and without its global state."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .charts import Bars, Chart, HeatMap, LineChart, Scatter
from .palette import EMPTY, GREY, MARKERS, SCALE, Style, line_styles, styles
from .texts import all_whole, caption_of, legend_names, marked_points, shortened

__all__ = ['render_png']

_DPI = 110
_MARKERS = dict(zip(MARKERS, ('o', 's', '^', 'D', 'X', 'P', 'v', 'p', '*', 'h'), strict=True))
_DASHES = {'solid': '-', 'dash': '--', 'dot': ':', 'dashdot': '-.'}
#: Fonts for what DejaVu has not, where they are installed.
_FONTS = ('Noto Sans CJK SC', 'Noto Sans CJK JP', 'WenQuanYi Micro Hei', 'Microsoft YaHei', 'PingFang SC', 'Noto Sans')
_LEGEND_ROW, _LEGEND_CHARACTER = 0.185, 0.076  # inches


def render_png(charts: Sequence[Chart], title: str, columns: int) -> bytes:
    """All charts on one picture.

    Args:
        charts: What to draw.
        title: Above all of them, if there are several.
        columns: How many stand side by side.
    """
    rows = math.ceil(len(charts) / columns)
    sizes = [_size(chart) for chart in charts]
    widths = [max(width for width, _ in sizes[i::columns]) for i in range(columns)]
    heights = [max(height for _, height in sizes[i * columns : (i + 1) * columns]) for i in range(rows)]
    with _style():
        size = sum(widths), sum(heights) + 0.4 * (len(charts) > 1)
        figure = Figure(figsize=size, dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        FigureCanvasAgg(figure)
        parts = figure.subfigures(rows, columns, squeeze=False, width_ratios=widths, height_ratios=heights)
        known = styles([chart.names for chart in charts])
        for chart, part, (width, _) in zip(charts, parts.flat, sizes, strict=False):
            _draw(chart, part, known, width)
        if len(charts) > 1:
            figure.suptitle(_plain(shortened(title, int(size[0] * 9))), fontsize=13)
        out = io.BytesIO()
        figure.savefig(out, format='png', metadata={'Software': None})
    return out.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    installed = set(fontManager.get_font_names())
    family = ['DejaVu Sans', *(font for font in _FONTS if font in installed)]
    own = {'font.family': family, 'font.size': 9, 'axes.grid': True, 'grid.color': '#e3e3e3', 'axes.axisbelow': True}
    own |= {'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False}
    with matplotlib.style.context(['default', own]), warnings.catch_warnings():
        # A name in letters that no font here has: the page shows it.
        warnings.filterwarnings('ignore', message=r'Glyph .* missing')
        yield


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace('$', r'\$')


def _size(chart: Chart) -> tuple[float, float]:
    """Width and height of a chart with all that belongs to it, inches."""
    width, height = _plane(chart)
    rows, columns = _legend_table(chart, height)
    longest = max((len(name) for name in legend_names(chart.names)), default=0)
    caption = len(textwrap.wrap(caption_of(chart), _letters(width)))
    legend = columns * (longest * _LEGEND_CHARACTER + 0.5) if rows else 0.9
    return width + 0.9 + legend, height + 1.1 + 0.16 * caption


def _plane(chart: Chart) -> tuple[float, float]:
    """Width and height within the axes, inches."""
    if isinstance(chart, LineChart):
        return 5.2, 3.5
    if isinstance(chart, Scatter):
        return 4.6, 4.6
    if isinstance(chart, HeatMap):
        names = max(len(shortened(name, 28)) for name in chart.rows) * _LEGEND_CHARACTER
        return _within(0.62 * len(chart.columns) + names, 3.2, 11.0), _within(0.36 * len(chart.rows), 2.0, 9.0)
    return _within(0.45 * len(chart.categories) * len(chart.series), 4.2, 12.0), 3.5


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)


def _letters(width: float) -> int:
    """How many letters of a caption go on a line."""
    return int(width * 15)


def _legend_table(chart: Chart, height: float) -> tuple[int, int]:
    """Rows and columns of the legend."""
    rows = max(int(height / _LEGEND_ROW), 1)
    return min(len(chart.names), rows), math.ceil(len(chart.names) / rows)


def _draw(chart: Chart, part: Any, known: Mapping[str, Style], width: float) -> None:
    axes = part.add_subplot()
    if isinstance(chart, LineChart):
        handles = _draw_lines(chart, axes, known)
    elif isinstance(chart, Scatter):
        handles = _draw_points(chart, axes, known)
    elif isinstance(chart, HeatMap):
        handles = _draw_cells(chart, axes, part)
    else:
        handles = _draw_bars(chart, axes, known)
    axes.set_xlabel(_plain(chart.x_label))
    axes.set_ylabel(_plain(chart.y_label))
    lines = [*textwrap.wrap(chart.title, int(width * 9.5))]
    part.suptitle(_plain('\n'.join(lines)), fontsize=11)
    caption = textwrap.fill(caption_of(chart), _letters(width - 1.0))
    if caption:
        axes.set_title(_plain(caption), fontsize=8, color=GREY, loc='left')
    if handles:
        _legend(chart, axes, handles)


def _legend(chart: Chart, axes: Any, handles: Sequence[Any]) -> None:
    _, columns = _legend_table(chart, _plane(chart)[1])
    legend = axes.legend(
        handles,
        # matplotlib leaves out what begins with an underscore, so the names come afterwards.
        [str(i) for i in range(len(handles))],
        loc='upper left',
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        fontsize=8,
        ncols=columns,
        title=_plain(chart.legend_title) if isinstance(chart, Scatter) and chart.legend_title else None,
    )
    for text, name in zip(legend.get_texts(), legend_names(chart.names), strict=True):
        text.set_text(_plain(name))


def _draw_lines(chart: LineChart, axes: Any, known: Mapping[str, Style]) -> list[Any]:
    handles = []
    for series, style in zip(chart.series, line_styles(chart, known), strict=True):
        shown = [chart.is_drawn(x, y) for x, y in zip(series.x, series.y, strict=True)]
        y = [value if fits else math.nan for value, fits in zip(series.y, shown, strict=True)]
        marked = marked_points(chart, series)
        (line,) = axes.plot(
            *(series.x, y),
            color=style.colour,
            linestyle=_DASHES[style.dash],
            marker=_MARKERS[style.marker] if marked else None,
            markevery=marked,
            markersize=4,
            linewidth=1.6,
        )
        handles.append(line)
        large = [i for i in series.marks if shown[i]]
        axes.scatter(
            *([series.x[i] for i in large], [y[i] for i in large]),
            s=70,
            c=style.colour,
            marker=_MARKERS[style.marker],
        )
        if series.low is not None:
            axes.fill_between(series.x, series.low, series.high, color=style.colour, alpha=0.18, linewidth=0)
    for axis, is_log, values in (
        ('x', chart.log_x, [value for series in chart.series for value in series.x]),
        ('y', chart.log_y, [value for series in chart.series for value in series.y]),
    ):
        if is_log and chart.left_out < len(values):
            axes.set(**{f'{axis}scale': 'log'})
        elif all_whole(values):
            axes.locator_params(axis=axis, integer=True)
    if chart.from_zero and not chart.log_y and not _has_negative(chart):
        axes.set_ylim(bottom=0)
    if chart.x_names is not None:
        _name_ticks(axes.xaxis, chart.x_names, room=5.2)
    return handles


def _has_negative(chart: LineChart) -> bool:
    return any(value < 0 for series in chart.series for value in series.y)


def _name_ticks(axis: Any, names: Sequence[str], room: float, length: int = 24) -> None:
    """Names at 0, 1, 2, ...: upright where they are long, and not all of them where they are too many."""
    short = [shortened(name, length) for name in names]
    upright = sum(map(len, short)) * 0.085 > room and max(map(len, short)) > 2
    step = math.ceil(len(names) * 0.17 / room) if upright or max(map(len, short)) <= 2 else 1
    axis.set_ticks(range(0, len(names), step), [_plain(name) for name in short[::step]])
    if upright and axis.axis_name == 'x':
        axis.set_tick_params(rotation=90 if len(names) > 8 else 30)
        for label in axis.get_ticklabels():
            label.set_horizontalalignment('center' if len(names) > 8 else 'right')
            label.set_rotation_mode('default' if len(names) > 8 else 'anchor')


def _draw_points(chart: Scatter, axes: Any, known: Mapping[str, Style]) -> list[Any]:
    number = sum(len(group.x) for group in chart.groups)
    size = _within(12000 / number, 8, 36)
    handles = [
        axes.scatter(
            *(group.x, group.y),
            s=size,
            c=known[group.name].colour,
            marker=_MARKERS[known[group.name].marker],
            alpha=0.8,
            linewidths=0,
        )
        for group in chart.groups
    ]
    if chart.one_scale:
        axes.set_aspect('equal', adjustable='datalim')
    axes.set_box_aspect(1)
    axes.grid(visible=False)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(True)
    if not (chart.x_label or chart.y_label):
        axes.set_xticks([])
        axes.set_yticks([])
    return handles


def _draw_cells(chart: HeatMap, axes: Any, part: Any) -> list[Any]:
    low, high = chart.scale
    values = [[value if math.isfinite(value) else math.nan for value in row] for row in chart.values]
    colours = LinearSegmentedColormap.from_list('scale', SCALE).with_extremes(bad=EMPTY)
    image = axes.imshow(values, cmap=colours, aspect='auto', vmin=low, vmax=high)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    width, height = _plane(chart)
    _name_ticks(axes.xaxis, chart.columns, room=width)
    _name_ticks(axes.yaxis, chart.rows, room=height, length=28)
    if len(chart.columns) <= 24 and len(chart.rows) <= 40:
        for row, column in ((i, j) for i in range(len(chart.rows)) for j in range(len(chart.columns))):
            share = (chart.values[row][column] - low) / (high - low)
            colour = 'black' if share > 0.5 else 'white'
            axes.text(column, row, chart.text(row, column), ha='center', va='center', fontsize=8, color=colour)
    if chart.marked is not None:
        row, column = chart.marked
        frame = matplotlib.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor='red', linewidth=2)
        axes.add_patch(frame)
    part.colorbar(image, ax=axes, label=_plain(chart.value_label))
    return []


def _draw_bars(chart: Bars, axes: Any, known: Mapping[str, Style]) -> list[Any]:
    width = 0.8 / len(chart.series)
    handles = []
    hatches = islice(cycle(('', '//', '..', 'xx')), (len(chart.series) + 6) // 7)
    patterns = [hatch for hatch in hatches for _ in range(7)]
    for number, series in enumerate(chart.series):
        at = [i + (number - (len(chart.series) - 1) / 2) * width for i in range(len(chart.categories))]
        values = [value if math.isfinite(value) else 0.0 for value in series.values]
        errors = None
        if series.errors is not None:
            pairs = zip(series.errors, series.values, strict=True)
            errors = [error if math.isfinite(error) and math.isfinite(value) else 0.0 for error, value in pairs]
        bars = axes.bar(
            *(at, values, 0.92 * width),
            yerr=errors,
            color=known[series.name].colour,
            hatch=patterns[number],
            error_kw={'capsize': 3, 'elinewidth': 1.2, 'ecolor': '#333333'},
        )
        handles.append(bars)
        if chart.digits is not None and len(chart.categories) * len(chart.series) <= 40:
            texts = [f'{value:.{chart.digits}f}' if math.isfinite(value) else '–' for value in series.values]
            axes.bar_label(bars, texts, fontsize=7, padding=2)
    axes.margins(y=0.1)
    axes.grid(visible=False, axis='x')
    _name_ticks(axes.xaxis, chart.categories, room=_plane(chart)[0])
    return handles
