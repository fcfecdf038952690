"""Charts as data, drawn twice: a PNG (matplotlib) and an interactive page (plotly) that needs no network."""

from .charts import Bars, BarSeries, Chart, HeatMap, LineChart, Points, Scatter, Series
from .saving import check_drawing, save_charts

__all__ = [
    'BarSeries',
    'Bars',
    'Chart',
    'HeatMap',
    'LineChart',
    'Points',
    'Scatter',
    'Series',
    'check_drawing',
    'save_charts',
]
