"""The pages' own code: what a user copies from a page is what the tests run.

A fenced block is preceded by a comment that says what it is: ``<!-- run: name -->`` commands, ``<!-- file: name -->`` a
file to write, ``<!-- output: name -->`` what the commands of that name print, ``<!-- report: config -->`` what the log
says of the layers of a config at its full size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ['DOCS', 'PAGES', 'Block', 'Mistake', 'blocks', 'is_in', 'mistakes', 'mistakes_first_told', 'text_of']

DOCS = Path(__file__).resolve().parents[2] / 'docs'
PAGES = ('detection', 'segmentation', 'classification')

_FENCE = re.compile(r'(?:^<!-- ([\w ]+): (.+?) -->\n)?^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_ROW = re.compile(r'^\| (.+?) \| `(.+?)` \| (.+?) \|$', re.MULTILINE)
#: Mistakes that have nothing to do with the toolbox.
_TOOLS = ('no network', '`--amp` without a GPU', "the baseline's checkpoint resumed with OLOR")
_NUMBER = re.compile(r'\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?')


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: 'run', 'file', 'output' or 'report'; empty where no comment stands before it.
        name: What the comment names.
        language: What stands behind the fence.
        text: What is in it.
    """

    kind: str
    name: str
    language: str
    text: str


@dataclass(frozen=True)
class Mistake:
    """A row of a page's table of mistakes: what was done, the message, the remedy."""

    done: str
    message: str
    remedy: str

    @property
    def is_option(self) -> bool:
        """Whether what was done is an option of the command line, and nothing else."""
        return re.fullmatch(r'`--[^`]+`', self.done) is not None

    @property
    def is_warning(self) -> bool:
        """Whether the run goes on."""
        return self.remedy.startswith('a warning')


def text_of(page: str) -> str:
    """The page, which is named as its file is without ``.md``."""
    return (DOCS / f'{page}.md').read_text(encoding='utf-8')


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page in order."""
    return [
        Block(kind or '', name or '', language, text) for kind, name, language, text in _FENCE.findall(text_of(page))
    ]


def mistakes(page: str) -> list[Mistake]:
    """The rows of the table below the heading 'When it does not work'."""
    _, _, section = text_of(page).partition('## When it does not work\n')
    return [Mistake(*row) for row in _ROW.findall(section)]


def mistakes_first_told(page: str) -> list[Mistake]:
    """The rows, but on the first page alone those that have nothing to do with the toolbox."""
    return [told for told in mistakes(page) if told.done not in _TOOLS or PAGES[0] == page]


def is_in(quoted: str, said: str, exact: bool = False) -> bool:
    """Whether a text holds a quotation, line by line in that order.

    Blanks are as wide as they like, and ``...`` stands for anything on its line.

    Args:
        quoted: The quotation.
        said: The text.
        exact: Whether numbers must be the same; else they are those of the full-size run and stand for any. Defaults
            to False.
    """
    where = 0
    said = _plain(said, exact)
    for line in quoted.splitlines():
        parts = [re.escape(part) for part in _plain(line, exact).split('...')]
        found = re.compile(r'[^\n]*'.join(parts)).search(said, where)
        if found is None:
            return False
        where = found.end()
    return True


def _plain(text: str, exact: bool) -> str:
    text = text if exact else _NUMBER.sub('0', text)
    # MMEngine pads the numbers of iterations in their brackets.
    return '\n'.join(re.sub(r'(?<=\[) +', '', ' '.join(line.split())) for line in text.splitlines())
