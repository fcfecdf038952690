"""Parameters that are trained with form='single_pass' and without."""

import pytest
import torch
from torch import nn

from olor_mm.rollback import Rollback
from olor_mm.rollback.single_pass import cpu

OPTIMIZERS = {
    'AdamW': (torch.optim.AdamW, {}),
    'AdamW, plain': (torch.optim.AdamW, {'fused': None}),
    'AdamW, maximize': (torch.optim.AdamW, {'maximize': True, 'weight_decay': 0.3}),
    'Adam': (torch.optim.Adam, {}),
    'Adam, L2': (torch.optim.Adam, {'weight_decay': 0.1, 'betas': (0.5, 0.75), 'eps': 1e-3}),
    'SGD': (torch.optim.SGD, {'momentum': 0.9}),
    'SGD, L2, dampening': (torch.optim.SGD, {'momentum': 0.5, 'weight_decay': 0.1, 'dampening': 0.25}),
    'SGD, Nesterov': (torch.optim.SGD, {'momentum': 0.9, 'nesterov': True, 'maximize': True}),
}
SHAPES = [(37, 41), (128,), (3,), (), (10000, 7), (8, 4, 3, 3)]


def has_fused(cls, device):
    try:
        cls([torch.ones(1, device=device)], lr=1.0, fused=True)
    except (RuntimeError, TypeError):
        return False
    return True


class Run:
    """Parameters of several shapes, the last two without pull, trained on drawn gradients."""

    def __init__(self, name, form, device='cpu', dtype=torch.float32, levels=None):
        torch.manual_seed(0)
        self.params = [nn.Parameter(torch.randn(shape, dtype=dtype).to(device)) for shape in [*SHAPES, (9,), (2, 2)]]
        self.params[5].data = self.params[5].data.contiguous(memory_format=torch.channels_last)
        cls, options = OPTIMIZERS[name]
        groups = [{'params': self.params[:3]}, {'params': self.params[3:], 'lr': 2e-2}]
        fused = {'fused': True} if has_fused(cls, device) else {}
        self.optimizer = cls(groups, lr=1e-2, **{**fused, **options})
        self.rollback = self.join(form, levels)
        self.generator = torch.Generator().manual_seed(1)
        self.coarse = False

    def join(self, form, levels=None):
        pulled = self.params[: len(SHAPES)]
        levels = levels or [0.01 * (i + 1) for i in range(len(pulled))]
        self.rollback = Rollback(self.optimizer, dict(zip(pulled, levels, strict=True)), form=form)
        return self.rollback

    def step(self, count=1):
        for _ in range(count):
            for group in self.optimizer.param_groups:
                group['lr'] *= 0.9
            for p in self.params:
                p.grad = torch.empty_like(p)
                drawn = torch.randn(p.shape, generator=self.generator)
                p.grad.copy_(drawn.bfloat16() if self.coarse else drawn)
            self.optimizer.step()

    def assert_like(self, other, **tolerance):
        for p, q in zip(self.params, other.params, strict=True):
            torch.testing.assert_close(p, q, **tolerance)
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)
            mine, theirs = self.optimizer.state[p], other.optimizer.state[q]
            assert mine.keys() == theirs.keys()
            for key in mine:
                torch.testing.assert_close(mine[key], theirs[key], **tolerance)
        assert self.rollback.num_steps == other.rollback.num_steps
        assert self.rollback.num_rolled_back == other.rollback.num_rolled_back


def compiled_or_skip():
    """Skips the tests of a module where the kernels cannot be compiled."""
    try:
        cpu.load()
    except cpu.BuildError as error:
        pytest.skip(str(error))
