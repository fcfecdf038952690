"""lambda_i against the paper's equation and its limits."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from olor_mm.rollback import layerwise_levels, layerwise_penalty


@pytest.mark.parametrize(
    ('i', 'n', 'max_level', 'min_level', 'power', 'level'),
    [
        (0, 12, 0.01, 0.0, 2, 0.01),
        (12, 12, 0.01, 0.0, 2, 0.0),
        (6, 12, 0.01, 0.0, 2, 0.0025),
        (6, 12, 0.01, 0.0, 1, 0.005),
        (3, 4, 1.0, 0.5, 2, 0.5 + 0.0625 * 0.5),
        (0, 0, 0.3, 0.1, 4, 0.3),
        (1, 2, 0.1, 0.1, 0.5, 0.1),
    ],
)
def test_equation_8(i, n, max_level, min_level, power, level):
    assert layerwise_penalty(i, n, max_level, min_level, power) == pytest.approx(level, abs=1e-15)


@given(
    n=st.integers(0, 200),
    levels=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    power=st.floats(0.05, 16),
)
def test_falls_with_depth_between_its_bounds(n, levels, power):
    low, high = sorted(levels)
    values = [layerwise_penalty(i, n, high, low, power) for i in range(n + 1)]
    assert values[0] == high
    assert n == 0 or values[-1] == low
    assert all(low <= v <= high for v in values)
    assert all(b <= a + 1e-15 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'max_level': 1.5}, 'max_level=1.5'),
        ({'max_level': -0.1}, 'max_level=-0.1'),
        ({'max_level': math.nan}, 'max_level=nan'),
        ({'max_level': '0.1'}, "max_level='0.1'"),
        ({'max_level': True}, 'max_level=True'),
        ({'max_level': 0.1, 'min_level': 0.2}, 'min_level=0.2 is above max_level=0.1'),
        ({'max_level': 0.1, 'power': 0}, 'power=0'),
        ({'max_level': 0.1, 'power': math.inf}, 'power=inf'),
        ({'max_level': 0.1, 'i': 3}, 'i=3'),
        ({'max_level': 0.1, 'i': -1}, 'i=-1'),
    ],
)
def test_errors_name_the_option_and_the_value(options, said):
    with pytest.raises(ValueError, match=said.replace('.', r'\.')):
        layerwise_penalty(**{'i': 0, 'n': 2, **options})


def test_levels_of_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    index = {'0.weight': 0, '0.bias': 0, '1.weight': 1}
    levels = layerwise_levels(model.named_parameters(), index, 1, 0.1, power=2)
    assert levels == {model[0].weight: 0.1, model[0].bias: 0.1, model[1].weight: 0.0}
    wrapped = torch.nn.Sequential(torch.compile(model[0]), *model[1:])
    assert layerwise_levels(wrapped.named_parameters(), index, 1, 0.1, power=2) == levels
    with pytest.raises(ValueError, match='no name in common'):
        layerwise_levels(model.named_parameters(), {'backbone.x': 0}, 1, 0.1)
