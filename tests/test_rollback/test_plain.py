"""rollback/ and layers/ work where nothing of OpenMMLab can be imported."""

import subprocess
import sys
import textwrap
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

SCRIPT = """
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
                raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    sys.meta_path.insert(0, Absent())
    import torch
    import olor_mm
    from olor_mm.layers import assign_layers
    from olor_mm.rollback import Rollback, layerwise_levels

    model = torch.nn.Sequential()
    model.add_module('stem', torch.nn.Linear(3, 4))
    model.add_module('blocks', torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)]))
    model.add_module('head', torch.nn.Linear(4, 2))
    table = assign_layers(model, roots=('stem', 'blocks'))
    levels = layerwise_levels(model.named_parameters(), table.index, table.num_layers, max_level=1.0, min_level=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    Rollback(optimizer, levels)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        x = model.stem(torch.ones(2, 3))
        for block in model.blocks:
            x = block(x)
        model.head(x).square().sum().backward()
        optimizer.step()
    same = {k: torch.equal(p, before[k]) for k, p in model.named_parameters()}
    print(sorted(k for k, v in same.items() if not v), sum(same.values()))
    print([m for m in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain') if m in sys.modules])
"""


def test_without_openmmlab(tmp_path):
    run = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(SCRIPT)],
        cwd=tmp_path,
        env={'PYTHONPATH': str(REPO), 'PATH': ''},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["['head.bias', 'head.weight'] 8", '[]']


def test_import_is_light():
    code = 'import sys, olor_mm; print([m for m in ("torch", "mmengine", "numpy") if m in sys.modules])'
    run = subprocess.run([sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == '[]', run.stderr
