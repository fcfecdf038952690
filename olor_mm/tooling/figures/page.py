"""Charts as one interactive page, by plotly; its script is part of the page, so no network is needed."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from .charts import Bars, Chart, HeatMap, LineChart, Scatter
from .palette import EMPTY, GREY, SCALE, Style, line_styles, styles
from .texts import all_whole, caption_of, legend_names, marked_points, shortened

__all__ = ['render_page']

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }}
p {{ color: #555; font-size: .9rem; margin: .25rem 0 0; overflow-wrap: anywhere; }}
main {{ display: grid; gap: 2rem 1.5rem; grid-template-columns: repeat({columns}, minmax(0, 1fr)); }}
@media (max-width: {narrow}px) {{ main {{ grid-template-columns: minmax(0, 1fr); }} }}
</style>
<script>{script}</script>
</head>
<body>
<h1>{title}</h1>
<main>
"""
#: plotly's own page offers to upload the data.
_CONFIG = {
    'displaylogo': False,
    'responsive': True,
    'showSendToCloud': False,
}
_NARROW = 640  # pixels


def render_page(charts: Sequence[Chart], title: str, columns: int) -> str:
    """All charts on one page.

    Args:
        charts: What to draw.
        title: Of the page.
        columns: How many charts stand side by side on a wide screen.
    """
    known = styles([chart.names for chart in charts])
    head = _HEAD.format(
        title=html.escape(title),
        columns=columns,
        narrow=_NARROW * columns,
        script=get_plotlyjs().replace('</script', '<\\/script'),
    )
    sections = '\n'.join(_section(chart, i, known) for i, chart in enumerate(charts))
    return f'{head}{sections}\n</main>\n</body>\n</html>\n'


def _section(chart: Chart, number: int, known: Mapping[str, Style]) -> str:
    figure = go.Figure(data=_traces(chart, known), layout=_layout(chart))
    drawn = to_html(
        figure,
        config=_CONFIG,
        full_html=False,
        include_plotlyjs=False,
        div_id=f'chart-{number}',
        default_height=f'{_height(chart)}px',
    )
    caption = caption_of(chart)
    below = f'\n<p>{html.escape(caption)}</p>' if caption else ''
    return f'<section>\n<h2>{html.escape(chart.title)}</h2>{below}\n{drawn}\n</section>'


def _plain(text: str) -> str:
    """Text that plotly takes neither for markup nor for a template."""
    return html.escape(text, quote=False).replace('%{', '%&#123;').replace('\n', ' ')


def _height(chart: Chart) -> int:
    """Pixels."""
    if isinstance(chart, HeatMap):
        return min(max(26 * len(chart.rows), 200), 900) + 140
    below = 22 * len(chart.names) if _legend_below(chart) else 0
    return (560 if isinstance(chart, Scatter) else 460) + below


def _legend_below(chart: Chart) -> bool:
    """Whether the legend stands below: beside the chart, long names would leave it little room."""
    return len(chart.names) <= 8 and max(map(len, legend_names(chart.names)), default=0) > 22


def _layout(chart: Chart) -> dict[str, Any]:
    axis = {'showline': True, 'linecolor': '#999', 'gridcolor': '#e3e3e3', 'zeroline': False, 'automargin': True}
    layout: dict[str, Any] = {
        'template': 'none',
        'margin': {'l': 60, 'r': 20, 't': 36, 'b': 50},
        'font': {'family': 'system-ui, sans-serif', 'size': 13, 'color': '#222'},
        'hoverlabel': {'namelength': -1},
        'hovermode': 'closest',
        'legend': {'tracegroupgap': 0, 'font': {'size': 12}},
        'showlegend': not isinstance(chart, HeatMap),
    }
    if _legend_below(chart):
        layout['legend'].update(orientation='h', x=0, xanchor='left', y=-0.22, yanchor='top', entrywidth=1)
        layout['legend']['entrywidthmode'] = 'fraction'
    if isinstance(chart, LineChart):
        x, y = _line_axes(chart)
        if _is_unified(chart):
            layout['hovermode'] = 'x unified'
    elif isinstance(chart, Scatter):
        x = {'showgrid': False, 'mirror': True, 'showticklabels': bool(chart.x_label)}
        y = {'showgrid': False, 'mirror': True, 'showticklabels': bool(chart.y_label)}
        if chart.one_scale:
            y['scaleanchor'] = 'x'
        layout['legend'].update(title={'text': _plain(chart.legend_title)}, itemsizing='constant')
    elif isinstance(chart, HeatMap):
        x = {**_ticks(chart.columns), 'showgrid': False}
        y = {**_ticks(chart.rows), 'showgrid': False, 'autorange': 'reversed'}
        layout.update(shapes=_frame(chart), plot_bgcolor=EMPTY)
    else:
        x, y = {**_ticks(chart.categories), 'showgrid': False}, {}
        layout['barmode'] = 'group'
    layout['xaxis'] = {**axis, 'title': {'text': _plain(chart.x_label), 'standoff': 12}, **x}
    layout['yaxis'] = {**axis, 'title': {'text': _plain(chart.y_label), 'standoff': 12}, **y}
    return layout


def _is_unified(chart: LineChart) -> bool:
    """Whether one label shows the values of all lines; with more of them it would hide the chart."""
    return chart.compare and len(chart.series) <= 10


def _line_axes(chart: LineChart) -> tuple[dict[str, Any], dict[str, Any]]:
    found = []
    for is_log, values in (
        (chart.log_x, [value for series in chart.series for value in series.x]),
        (chart.log_y, [value for series in chart.series for value in series.y]),
    ):
        shown = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
        axis: dict[str, Any] = {'type': 'log' if is_log else 'linear'}
        if is_log and shown and max(shown) > 30 * min(shown):
            # No numbers between the powers of ten.
            axis.update(exponentformat='power', dtick=1)
        elif not is_log and shown and all_whole(shown) and max(shown) - min(shown) <= 12:
            axis['dtick'] = 1
        found.append(axis)
    x, y = found
    if chart.from_zero and not chart.log_y:
        y['rangemode'] = 'tozero'
    return (x if chart.x_names is None else {**x, **_ticks(chart.x_names)}), y


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    """Names at 0, 1, 2, ...; plotly would take names that look like numbers or dates for such."""
    step = math.ceil(len(names) / 60)
    shown = [_plain(shortened(name, 28)) for name in names]
    return {'tickmode': 'array', 'tickvals': list(range(0, len(names), step)), 'ticktext': shown[::step]}


def _frame(chart: HeatMap) -> list[dict[str, Any]]:
    if chart.marked is None:
        return []
    row, column = chart.marked
    edges = {'x0': column - 0.5, 'x1': column + 0.5, 'y0': row - 0.5, 'y1': row + 0.5}
    return [{'type': 'rect', **edges, 'line': {'color': 'red', 'width': 3}}]


def _traces(chart: Chart, known: Mapping[str, Style]) -> list[dict[str, Any]]:
    if isinstance(chart, LineChart):
        return _lines(chart, known)
    if isinstance(chart, Scatter):
        return _points(chart, known)
    if isinstance(chart, HeatMap):
        return _cells(chart)
    return _bars(chart, known)


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _lines(chart: LineChart, known: Mapping[str, Style]) -> list[dict[str, Any]]:
    traces = []
    unified = _is_unified(chart)
    for series, style, short in zip(chart.series, line_styles(chart, known), legend_names(chart.names), strict=True):
        if series.low is not None and series.high is not None:
            traces += _band(series.x, series.low, series.high, style.colour, series.name)
        marked = set(marked_points(chart, series))
        drawn = [chart.is_drawn(x, y) for x, y in zip(series.x, series.y, strict=True)]
        sizes = [14 if i in series.marks else 7 if i in marked else 0 for i in range(len(drawn))]
        note = '' if series.notes is None else '<br>%{customdata}'
        where = f'{_plain(series.name)}<br>{_plain(chart.x_label)}: %{{x}}<br>{_plain(chart.y_label)}: %{{y:.4g}}'
        traces.append(
            {
                'type': 'scatter',
                'mode': 'lines+markers',
                'name': _plain(short),
                'legendgroup': series.name,
                'x': _finite(series.x),
                'y': [value if fits else None for value, fits in zip(series.y, drawn, strict=True)],
                'customdata': None if series.notes is None else [_plain(text) for text in series.notes],
                'line': {'color': style.colour, 'dash': style.dash, 'width': 2},
                'marker': {'symbol': style.marker, 'size': sizes, 'opacity': 1},
                'hovertemplate': f'%{{y:.4g}}{note}' if unified else f'{where}{note}<extra></extra>',
            }
        )
    return traces


def _band(
    x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, name: str
) -> list[dict[str, Any]]:
    fill = 'rgba({}, {}, {}, 0.18)'.format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))
    common = {
        'type': 'scatter',
        'mode': 'lines',
        'x': _finite(x),
        'line': {'width': 0, 'color': colour},
        'legendgroup': name,
        'showlegend': False,
        'hoverinfo': 'skip',
    }
    return [
        {**common, 'y': _finite(low)},
        {**common, 'y': _finite(high), 'fill': 'tonexty', 'fillcolor': fill},
    ]


def _points(chart: Scatter, known: Mapping[str, Style]) -> list[dict[str, Any]]:
    number = sum(len(group.x) for group in chart.groups)
    size = min(max(2500 / number, 5), 9)
    traces = []
    for group, short in zip(chart.groups, legend_names(chart.names), strict=True):
        note = '<br>%{customdata}' if group.notes is not None else ''
        traces.append(
            {
                'type': 'scattergl' if number > 20_000 else 'scatter',
                'mode': 'markers',
                'name': _plain(short),
                'x': _finite(group.x),
                'y': _finite(group.y),
                'customdata': None if group.notes is None else [_plain(text) for text in group.notes],
                'marker': {
                    'color': known[group.name].colour,
                    'symbol': known[group.name].marker,
                    'size': size,
                    'opacity': 0.8,
                },
                'hovertemplate': f'{_plain(group.name)}{note}<extra></extra>',
            }
        )
    return traces


def _cells(chart: HeatMap) -> list[dict[str, Any]]:
    numbers = len(chart.columns) <= 24 and len(chart.rows) <= 40
    steps = len(SCALE) - 1
    texts = [[chart.text(i, j) for j in range(len(chart.columns))] for i in range(len(chart.rows))]
    names = [[[_plain(row), _plain(column)] for column in chart.columns] for row in chart.rows]
    what = _plain(chart.value_label) or 'value'
    across, down = _plain(chart.x_label), _plain(chart.y_label)
    hover = f'{down + ": " if down else ""}%{{customdata[0]}}<br>{across + ": " if across else ""}%{{customdata[1]}}'
    return [
        {
            'type': 'heatmap',
            'z': [_finite(row) for row in chart.values],
            'text': texts,
            'texttemplate': '%{text}' if numbers else None,
            'customdata': names,
            'zmin': chart.scale[0],
            'zmax': chart.scale[1],
            'colorscale': [[i / steps, colour] for i, colour in enumerate(SCALE)],
            'colorbar': {'title': {'text': _plain(chart.value_label), 'side': 'right'}},
            'xgap': 1,
            'ygap': 1,
            'hoverongaps': False,
            'hovertemplate': f'{hover}<br>{what}: %{{z:.5g}}<extra></extra>',
        }
    ]


def _bars(chart: Bars, known: Mapping[str, Style]) -> list[dict[str, Any]]:
    traces = []
    for series, short in zip(chart.series, legend_names(chart.names), strict=True):
        digits = chart.digits
        texts = [
            f'{value:.{digits}f}' if digits is not None and math.isfinite(value) else '' for value in series.values
        ]
        error = '' if series.errors is None else ' ± %{error_y.array:.4g}'
        traces.append(
            {
                'type': 'bar',
                'name': _plain(short),
                'x': list(range(len(chart.categories))),
                'y': _finite(series.values),
                'text': texts,
                'textposition': 'auto',
                'customdata': [_plain(name) for name in chart.categories],
                'error_y': None if series.errors is None else {'type': 'data', 'array': _finite(series.errors)},
                'marker': {'color': known[series.name].colour, 'line': {'width': 0, 'color': GREY}},
                'hovertemplate': f'{_plain(series.name)}<br>%{{customdata}}: %{{y:.5g}}{error}<extra></extra>',
            }
        )
    return traces
