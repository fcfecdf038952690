"""Canonical names: one name for a parameter, however its model is wrapped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olor_mm.layers import canonical_name

NAMES = [
    ('backbone.blocks.0.w', 'backbone.blocks.0.w'),
    ('module.backbone._orig_mod.blocks.0._fsdp_wrapped_module.w', 'backbone.blocks.0.w'),
    ('_orig_mod.module.backbone.w', 'backbone.w'),
    ('module._orig_mod.backbone.w', 'backbone.w'),
    ('_fsdp_wrapped_module.backbone._checkpoint_wrapped_module.w', 'backbone.w'),
    ('module.module.w', 'w'),
    # A sub-module that is really called so, as in mmpretrain's LoRAModel.
    ('backbone.module.layers.0.w', 'backbone.module.layers.0.w'),
    ('module.backbone.module.layers.0.w', 'backbone.module.layers.0.w'),
    # The last component is the parameter, whatever it is called.
    ('module', 'module'),
    ('module._orig_mod', '_orig_mod'),
    ('modules.w', 'modules.w'),
]

PLAIN = st.lists(st.sampled_from(['backbone', 'blocks', '0', '11', 'attn', 'w']), min_size=1, max_size=6)
ANYWHERE = st.sampled_from(['_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'])


@pytest.mark.parametrize(('name', 'expected'), NAMES)
def test_canonical_name(name: str, expected: str) -> None:
    assert canonical_name(name) == expected


@pytest.mark.parametrize('name', [name for name, _ in NAMES])
def test_twice_is_once(name: str) -> None:
    assert canonical_name(canonical_name(name)) == canonical_name(name)


@given(plain=PLAIN, wrappers=st.lists(st.tuples(st.integers(0, 5), ANYWHERE), max_size=6), front=st.integers(0, 3))
def test_wrappers_leave_no_trace(plain: list[str], wrappers: list[tuple[int, str]], front: int) -> None:
    wrapped = list(plain)
    for place, wrapper in wrappers:
        wrapped.insert(min(place, len(wrapped) - 1), wrapper)
    assert canonical_name('.'.join(['module'] * front + wrapped)) == '.'.join(plain)


def test_imports_no_openmmlab_and_no_timm() -> None:
    code = (
        'import sys, olor_mm.layers\n'
        "banned = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'olor_mm.engine', 'olor_mm.rollback')\n"
        'print([name for name in banned if name in sys.modules])'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == '[]'


def test_examples_of_the_docs_run() -> None:
    pytest.importorskip('mmpretrain')
    text = (Path(__file__).parents[2] / 'docs' / 'layers.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, flags=re.DOTALL)
    assert blocks
    exec('\n'.join(blocks), {})
