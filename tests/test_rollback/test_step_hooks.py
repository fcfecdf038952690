"""Steps call the rollback's hooks whatever is compiled: each case in a process of its own, for it is for good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from olor_mm.rollback import Rollback
from olor_mm.rollback._step_hooks import _compiling_takes_hooks_off

CODE = """
import torch
from olor_mm.rollback import Rollback

p = torch.nn.Parameter(torch.zeros(3))
optimizer = torch.optim.SGD([p], lr=0.5)
made = {{}}

def compiling():
    torch._dynamo.optimize('eager')(lambda x: x + 1)(torch.ones(1))

def scheduler():
    made['scheduler'] = torch.optim.lr_scheduler.StepLR(optimizer, 100)

def rollback():
    made['rollback'] = Rollback(optimizer, {{p: 1.0}})

def step():
    p.grad = torch.ones(3)
    optimizer.step()

for act in ({order}):
    act()
for _ in range(3):
    step()
assert made['rollback'].num_steps == 3, made['rollback'].num_steps
assert torch.equal(p, torch.zeros(3)), p
made['rollback'].detach()
step()
assert not torch.equal(p, torch.zeros(3))
"""
ORDERS = (
    'rollback, compiling',
    'compiling, rollback',
    'compiling, scheduler, rollback',
    'scheduler, rollback, compiling',
    'rollback, scheduler, compiling',
    'rollback, compiling, scheduler',
)


@pytest.mark.parametrize('order', ORDERS)
def test_compiling_leaves_the_rollback_on(order: str, tmp_path: Path) -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    if order != ORDERS[0] and not _compiling_takes_hooks_off():
        pytest.skip('compiling leaves the hooks alone in this torch')
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, '-W', 'ignore', '-c', CODE.format(order=order)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_the_optimizer_is_as_it_was_after_detach() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=0.5)
    before = dict(vars(optimizer))
    Rollback(optimizer, {p: 1.0}).detach()
    assert vars(optimizer).keys() == before.keys()
