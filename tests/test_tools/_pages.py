"""Pages with charts, opened as a user's browser does, and read back."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

__all__ = ['BROWSER', 'Links', 'drive', 'traces']

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)

#: Of a browser that asks nothing of the network by itself, and gets no answer for the page.
_QUIET = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'),
    *('--disable-background-networking', '--disable-component-update', '--host-resolver-rules=MAP * ~NOTFOUND'),
)


class Links(HTMLParser):
    """What a page refers to outside of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == 'script'
        if self._in_script:
            self.scripts.append('')
        self.found += [f'{tag} {key}={value}' for key, value in attrs if key in ('src', 'href', 'action', 'data')]
        self.found += [f'{tag} {key}={value}' for key, value in attrs if key == 'style' and 'url(' in str(value)]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def traces(page: Path) -> list[list[dict[str, Any]]]:
    """What plotly is given: the traces of each chart."""
    found = []
    for script in Links(page.read_text(encoding='utf-8')).scripts[1:]:
        start = script.index('[', script.index('Plotly.newPlot('))
        found.append(json.JSONDecoder().raw_decode(script, start)[0])
    return found


def drive(page: Path, folder: Path, script: str) -> Any:
    """Open a page in a browser, run a script in it and return what it says.

    Args:
        page: The page.
        folder: For the browser's own files.
        script: The body of an async function with ``charts``, the drawn charts, and ``sleep(ms)``; it returns
            something that goes through JSON.
    """
    told = (
        '<script>addEventListener("load", async () => {const sleep = ms => new Promise(done => setTimeout(done, ms));'
        'const charts = [...document.querySelectorAll(".plotly-graph-div")];let said;'
        f'try {{ said = await (async () => {{ {script} }})(); }} catch (error) {{ said = String(error); }}'
        'const out = document.createElement("pre"); out.id = "said"; out.textContent = JSON.stringify(said);'
        'document.body.replaceChildren(out);});</script>'
    )
    copy = folder / 'driven.html'
    copy.write_text(page.read_text(encoding='utf-8').replace('</body>', f'{told}</body>'), encoding='utf-8')
    command = [str(BROWSER), *_QUIET, f'--user-data-dir={folder / "browser"}', '--window-size=1400,1000']
    command += ['--virtual-time-budget=20000', '--dump-dom', copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = Links(done.stdout.replace('<pre id="said">', '<script>').replace('</pre>', '</script>')).scripts[-1]
    return json.loads(said.replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&'))
