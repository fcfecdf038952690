"""Every mistake of the table gives one clear error, as early as it can be known."""

import collections

import pytest

from . import _mistakes_in_loops  # noqa: F401  (adds its cases)
from ._mistake import MISTAKES
from ._mistakes_in_configs import write_files

assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize('mistake', MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_gives_one_clear_error(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    with pytest.raises(mistake.error, match=mistake.said) as caught:
        mistake.make(tmp_path)
    error = caught.value
    if mistake.by == 'us':
        text = str(error)
        assert '\n' not in text
        assert 40 < len(text) < 600
        # What led to it is said in the text, or of no help.
        assert error.__suppress_context__ or error.__context__ is None or error.__cause__ is not None


def test_the_table_is_what_was_promised():
    counts = collections.Counter(mistake.when for mistake in MISTAKES)
    assert set(counts) == {'build', 'start', 'step'}
    assert counts['build'] >= 60
