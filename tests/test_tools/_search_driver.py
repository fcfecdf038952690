"""tools/search.py with the stand-in, for tests that kill it."""

import sys

from olor_mm.tooling import run_command
from olor_mm.tooling.search import search
from tests.test_tools import _search_stand_in

if __name__ == '__main__':
    _search_stand_in.use(None, None)
    sys.exit(run_command(search))
