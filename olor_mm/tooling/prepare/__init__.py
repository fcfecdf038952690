"""``tools/prepare_data.py``: is a downloaded data set whole, and how is it used?

A data set is a :class:`~.specs.Spec`, which is data; the checks are functions that know of no set in particular.
"""

from .command import prepare

__all__ = ['prepare']
