"""docs/classification.md: every command, config, quoted output and mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config

import olor_mm
from olor_mm.datasets import PACS

from ._pages import Mistake, blocks, is_in, mistakes_first_told, text_of
from ._reader import Reader

pytestmark = pytest.mark.slow

PAGE = 'classification'


def test_from_top_to_bottom(reader: Reader) -> None:
    for block in blocks(PAGE):
        reader.read(block)


@pytest.mark.parametrize('mistake', mistakes_first_told(PAGE), ids=lambda mistake: mistake.done)
def test_mistakes(reader: Reader, mistake: Mistake) -> None:
    """After the page itself, whose files and checkpoints some of them need."""
    done = reader.err(mistake)
    assert is_in(mistake.message, done.text), done.text[-3000:]
    assert (done.code == 0) == mistake.is_warning, done.text[-3000:]


def test_the_table_of_data_sets() -> None:
    from olor_mm.tooling.prepare.specs import SPECS

    rows = re.findall(r'^\| [\w -]+ \| `([\w-]+)` \| `([\w/]+)` \| `(\w+)` \|$', text_of(PAGE), re.MULTILINE)
    assert {prepared for _, _, prepared in rows} == {name for name, spec in SPECS.items() if spec.has_labels}
    for suffix, folder, prepared in rows:
        for network in ('vit-base-p16', 'convnext-base'):
            cfg = Config.fromfile(olor_mm.cfg(f'olor_{network}_8xb16_{suffix}'))
            assert cfg.train_dataloader.dataset.data_root == folder == SPECS[prepared].data_root


def test_a_domain_left_out_is_the_same_in_a_file_and_on_the_command_line(reader: Reader) -> None:
    """After the page itself: the configs that its two runs saved."""
    work_dirs = reader.cwd / 'work_dirs'
    written = Config.fromfile(work_dirs / 'sketch_vit' / 'sketch_vit.py')
    typed = Config.fromfile(work_dirs / 'sketch' / f'{Path(reader.main).name}')
    for split in ('train', 'val', 'test'):
        one, other = ({**cfg[f'{split}_dataloader'].dataset} for cfg in (written, typed))
        assert one.pop('train_domains') == tuple(other.pop('train_domains'))
        assert one.pop('test_domains') == (other.pop('test_domains'),)
        assert one == other


def test_the_number_of_images_with_a_domain_left_out(shared_data: Path) -> None:
    """Of the real PACS, with the file of the page."""
    said = re.search(r'([\d,]+) images to train and ([\d,]+) to test', text_of(PAGE))
    assert said is not None
    (config,) = (block.text for block in blocks(PAGE) if block.name == 'sketch_vit.py')
    domains = Config.fromstring(re.sub(r'^_base_.*$', '', config, flags=re.MULTILINE), '.py').domains
    sizes = [len(PACS(shared_data / 'pacs', split=split, **domains)) for split in ('train', 'test')]
    assert [f'{size:,}' for size in sizes] == list(said.groups())
