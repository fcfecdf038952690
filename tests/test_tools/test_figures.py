"""Charts: the same in the picture and on the page, readable whatever the names and numbers are."""

import io
import math
import subprocess
import sys

import pytest

pytest.importorskip('matplotlib')
pytest.importorskip('plotly')

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from olor_mm.tooling import InputError
from olor_mm.tooling.figures import (
    Bars,
    BarSeries,
    HeatMap,
    LineChart,
    Points,
    Scatter,
    Series,
    check_drawing,
    palette,
    save_charts,
    texts,
)
from olor_mm.tooling.figures.page import render_page
from olor_mm.tooling.figures.png import render_png

from ._pages import BROWSER, Links, drive, traces

NAN = math.nan
HOSTILE = [
    '<b>bold</b>',
    '</script><script>fail()</script>',
    '_hidden',
    '$x_1$',
    '%{y} & %{x}',
    'a\nb',
    '2024-01-01',
    '名',
]


def lines(names=('OLOR', 'Full'), **options):
    series = [Series(name, [1, 2, 3], [0.1 * i, 0.2 * i, 0.7]) for i, name in enumerate(names, 1)]
    return LineChart('Training', 'epoch', 'loss', series, **options)


def all_kinds():
    return [
        lines(caption='Of two runs.'),
        Scatter('Features', [Points('cat', [0, 1], [2, 3], notes=['a.jpg', 'b.jpg']), Points('dog', [4], [5])]),
        HeatMap(
            'Grid', ['1', '2'], ['0', '1e-2'], [[1.25, NAN], [3.5, 4.75]], 'level', 'power', 'top-1, %', marked=(1, 1)
        ),
        Bars(
            'Methods', ['kNN', 'head'], [BarSeries('OLOR', [70, 80], [1, 2]), BarSeries('Full', [20, NAN])], 'top-1, %'
        ),
    ]


def pixels(png):
    return {
        tuple(row) for row in np.unique(np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).reshape(-1, 3), axis=0)
    }


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_a_picture_and_a_page_are_written(tmp_path):
    written = save_charts(all_kinds(), tmp_path / 'new', 'all', title='All <kinds>')
    assert [file.name for file in written] == ['all.png', 'all.html']
    assert sorted(file.name for file in (tmp_path / 'new').iterdir()) == ['all.html', 'all.png']
    assert Image.open(io.BytesIO(written[0].read_bytes())).size > (1000, 600)
    page = written[1].read_text(encoding='utf-8')
    assert '<h1>All &lt;kinds&gt;</h1>' in page
    assert '<p>Of two runs.</p>' in page
    assert '1 cell not shown: not finite.' in page


def test_a_page_refers_to_nothing_and_has_the_script_once(tmp_path):
    from plotly.offline import get_plotlyjs

    _, file = save_charts(all_kinds(), tmp_path, 'all')
    page = file.read_text(encoding='utf-8')
    links = Links(page)
    assert links.found == []
    assert '@import' not in page.replace(get_plotlyjs(), '')
    assert 'http' not in page.replace(get_plotlyjs(), '')
    assert len(page) < 1.02 * len(get_plotlyjs())
    # The button that would upload the data to plotly's server.
    assert all('"showSendToCloud": false' in script for script in links.scripts[1:])


def test_a_page_has_the_data(tmp_path):
    found = traces(save_charts(all_kinds(), tmp_path, 'all')[1])
    assert [trace['y'] for trace in found[0]] == [[0.1, 0.2, 0.7], [0.2, 0.4, 0.7]]
    assert [trace['customdata'] for trace in found[1] if 'customdata' in trace] == [['a.jpg', 'b.jpg']]
    assert found[2][0]['z'] == [[1.25, None], [3.5, 4.75]]
    assert found[2][0]['text'] == [['1.25', ''], ['3.50', '4.75']]
    assert found[3][0]['error_y']['array'] == [1, 2]
    assert found[3][1]['y'] == [20, None]


def test_a_series_has_one_colour_in_all_charts_and_in_both_renderings():
    charts = [lines(['OLOR', 'Full']), lines(['L2-SP', 'Full']), Bars('b', ['x'], [BarSeries('Full', [1])])]
    known = palette.styles([chart.names for chart in charts])
    assert len({style.colour for style in known.values()}) == len({'OLOR', 'Full', 'L2-SP'}) - 1
    assert known['L2-SP'] != known['Full'] != known['OLOR']
    for chart in charts:
        seen = pixels(render_png([chart], 'one', 1))
        page = render_page([chart], 'one', 1)
        alone = palette.styles([chart.names])
        assert {rgb(alone[name].colour) for name in chart.names} <= seen
        assert all(alone[name].colour in page for name in chart.names)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([str(i) for i in range(30)]), unique=True, min_size=1), min_size=1, max_size=4)
)
def test_styles_differ_within_a_chart(charts):
    known = palette.styles(charts)
    for names in charts:
        assert len({(known[name].colour, known[name].dash) for name in names}) == min(len(names), 28) or len(names) > 28
        assert len({(known[name].colour, known[name].marker) for name in names}) == len(names)


# Machado, Oliveira and Fernandes, 'A Physiologically-based Model for Simulation of Color Vision Deficiency' (2009).
BLIND = {
    'none': np.eye(3),
    'protan': [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    'deutan': [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    'tritan': [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear):
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ linear, 0, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize('kind', BLIND)
def test_colours_are_told_apart(kind):
    linear = [(np.array(rgb(colour)) / 255) ** 2.2 for colour in (*palette.COLOURS, '#ffffff')]
    seen = [lab(np.clip(np.asarray(BLIND[kind]) @ colour, 0, 1)) for colour in linear]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    # 2.3 is a just noticeable difference.
    assert min(apart) > 10


def test_values_that_are_not_finite_are_gaps_and_counted():
    chart = LineChart('c', 'x', 'y', [Series('s', [1, 2, 3, 4], [1.0, NAN, math.inf, None])], caption='Told.')
    assert texts.caption_of(chart) == 'Told. 3 points not shown: not finite.'
    assert '"y":[1.0,null,null,null]' in render_page([chart], 't', 1)
    assert render_png([chart], 't', 1)
    logs = LineChart('c', 'x', 'y', [Series('s', [1, 2, 3], [1.0, 0.0, -2.0])], log_y=True)
    assert texts.caption_of(logs) == '2 points not shown: not finite, or not above 0 on a logarithmic axis.'


@pytest.mark.parametrize('chart', [
    LineChart('none', 'x', 'y', [Series('s', [1, 2], [NAN, NAN])]),
    LineChart('none', 'x', 'y', [Series('s', [1, 2], [0, -1])], log_x=True, log_y=True),
    LineChart('one', 'x', 'y', [Series('s', [3], [1e-30], low=[0], high=[1])]),
    Scatter('one', [Points('s', [0], [0])]),
    Scatter('none', [Points('s', [NAN], [0])]),
    HeatMap('none', ['r'], ['c'], [[NAN]]),
    HeatMap('flat', ['r'], ['c', 'd'], [[1, 1]]),
    HeatMap('large', [f'backbone.layers.{i}' for i in range(60)], [f'epoch {i}' for i in range(99)], [range(99)] * 60),
    Bars('none', ['c'], [BarSeries('s', [NAN], [NAN])]),
    Bars('many', [f'a category of some length {i}' for i in range(30)], [BarSeries(i, range(30)) for i in 'abcdefghi']),
], ids=lambda chart: f'{type(chart).__name__}-{chart.title}')  # fmt: skip
def test_hard_data_is_drawn(chart):
    assert len(render_png([chart], 't', 1)) > 3000
    assert '"chart-0"' in render_page([chart], 't', 1)


@pytest.mark.parametrize(('make', 'match'), [
    (lambda: LineChart('c', 'x', 'y', []), "chart 'c' is empty: give it at least one Series"),
    (lambda: Scatter('c', []), "chart 'c' is empty: give it at least one group"),
    (lambda: HeatMap('c', [], [], []), "chart 'c' is empty: give it at least one row"),
    (lambda: Bars('c', [], []), "chart 'c' is empty: give it at least one category"),
    (lambda: Series('s', [], []), "'s' has no point"),
    (lambda: Points('s', [], []), "'s' has no point"),
    (lambda: Series('s', [1], [1, 2]), '1 of x, 2 of y'),
    (lambda: Series('s', [1], ['a']), "y of 's' must be numbers"),
    (lambda: Series('s', [1], [1], low=[0]), 'give low and high, or neither'),
    (lambda: lines(['a', 'a']), "two series of one name, 'a'"),
    (lambda: HeatMap('c', ['r'], ['c'], [[1, 2]]), '1 rows of 1 numbers'),
    (lambda: HeatMap('c', ['r'], ['c'], [[1]], marked=(0, 1)), 'is no cell'),
    (lambda: Bars('c', ['k'], [BarSeries('s', [1, 2])]), '2 of values, 1 of categories'),
    (lambda: save_charts([], '.', 'n'), 'there is no chart to draw'),
    (lambda: save_charts([lines()], '.', 'a/b'), 'without a folder'),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / 'file').write_text('')
    for folder in ('file', 'file/below'):
        with pytest.raises(InputError, match='it is a file'):
            save_charts([lines()], tmp_path / folder, 'n')


def test_a_package_that_is_missing_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'olor_mm.tooling.figures.page', None)
    monkeypatch.delattr('olor_mm.tooling.figures.page', raising=False)
    with pytest.raises(InputError, match='pip install matplotlib optuna plotly scikit-learn'):
        check_drawing(tmp_path)


def test_arrays_and_tensors_are_numbers():
    series = Series('s', np.arange(3), torch.tensor([1.0, 2.0, NAN]), notes=['a', 'b', 'c'])
    assert series.x == [0.0, 1.0, 2.0]
    assert series.y[:2] == [1.0, 2.0]


def test_long_names_are_short_in_the_legend_and_stay_apart():
    names = [f'work_dirs/{"x" * 60}/seed_{i}' for i in range(3)]
    short = texts.legend_names(names)
    assert max(map(len, short)) <= 42
    assert len(set(short)) == 3
    middle = [f'{"a" * 80}{i}{"b" * 160}' for i in range(3)]
    assert len(set(texts.legend_names(middle))) == 3


def test_names_are_no_formulas():
    odd = r'$\frac$'
    charts = [
        LineChart(odd, odd, odd, [Series(odd, [0, 1], [0, 1])], odd, x_names=[odd, odd]),
        Scatter(odd, [Points(odd, [0], [0])], odd, odd, odd, odd),
        HeatMap(odd, [odd], [odd], [[1]], odd, odd, odd, odd),
        Bars(odd, [odd], [BarSeries(odd, [1])], odd, odd, odd),
    ]
    assert Image.open(io.BytesIO(render_png(charts, odd, 2))).size > (1000, 600)


def test_a_long_line_marks_what_would_not_be_seen():
    y = [1.0] * 60
    y[10] = y[12] = NAN
    assert texts.marked_points(LineChart('c', 'x', 'y', [series := Series('s', range(60), y)]), series) == [11]
    assert len(texts.marked_points(LineChart('c', 'x', 'y', [short := Series('s', range(9), y[:9])]), short)) == 9


def test_charts_cost_nothing_until_they_are_drawn():
    code = (
        'import sys, olor_mm.tooling.figures\n'
        'assert not {"matplotlib", "plotly", "sklearn", "mmpretrain"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


DRIVE = """
const legend = charts.map(c => [...c.querySelectorAll('.legendtext')].map(t => t.textContent));
const texts = charts.map(c => c.querySelectorAll('text b, text a').length);
const toggles = charts[0].querySelectorAll('.legendtoggle');
for (const kind of ['mousedown', 'mouseup']) toggles[1].dispatchEvent(new MouseEvent(kind, {bubbles: true}));
await sleep(1000);
const visible = charts[0]._fullData.map(t => t.visible);
Plotly.Fx.hover(charts[0], [{curveNumber: 0, pointNumber: 1}]);
Plotly.Fx.hover(charts[1], [{curveNumber: 0, pointNumber: 1}]);
await sleep(500);
const hover = charts.map(c => [...c.querySelectorAll('.hoverlayer text')].map(t => t.textContent).join('|'));
const buttons = [...document.querySelectorAll('[data-title]')].map(b => b.dataset.title);
const asked = performance.getEntriesByType('resource').map(e => e.name);
return {legend, texts, visible, hover, buttons, asked, lost: typeof fail};
"""


@pytest.mark.parametrize(('labels', 'same'), [(('', ''), True), (('distance', 'accuracy'), False)])
def test_axes_of_points_have_one_scale_where_they_have_no_unit(labels, same):
    from olor_mm.tooling.figures import page, png

    chart = Scatter('c', [Points('a', [0.001, 0.002], [10, 90])], *labels)
    assert ('scaleanchor' in page._layout(chart)['yaxis']) is same
    axes = png.Figure().subplots()
    png._draw_points(chart, axes, png.styles([chart.names]))
    assert (axes.get_aspect() == 1) is same


@pytest.mark.skipif(BROWSER is None, reason='no Chromium here')
def test_in_a_browser(tmp_path):
    points = Scatter(
        '<i>Features</i>', [Points(name, [0, i], [i, 1], notes=['<u>x</u>.jpg'] * 2) for i, name in enumerate(HOSTILE)]
    )
    _, page = save_charts([lines(HOSTILE, compare=False), points], tmp_path, 'driven')
    said = drive(page, tmp_path, DRIVE)
    shown = [' '.join(name.split()) for name in HOSTILE]
    assert said['legend'] == [shown, shown]
    assert said['texts'] == [0, 0]
    assert said['lost'] == 'undefined'
    assert said['visible'] == [True, 'legendonly', *[True] * (len(HOSTILE) - 2)]
    assert '<b>bold</b>' in said['hover'][0]
    assert 'epoch: 2' in said['hover'][0]
    assert 'loss: 0.2' in said['hover'][0]
    assert '<u>x</u>.jpg' in said['hover'][1]
    assert said['asked'] == []
    assert not [button for button in said['buttons'] if 'hare' in button or 'loud' in button]
