"""Optimizer wrappers to compare: MMEngine's own, ours with rollback off and on, and the rollback done by hand."""

import functools

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from tests._torch import grad_scaler

LEVEL = 0.1
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
#: Wrapper type and device. On the CPU the scaler and the autocast of AmpOptimWrapper are torch's for the CPU.
PLACES = [
    pytest.param(('OptimWrapper', 'cpu'), id='fp32'),
    pytest.param(('AmpOptimWrapper', 'cpu'), id='amp'),
    pytest.param(('AmpOptimWrapper', 'cuda'), id='amp-cuda', marks=NEEDS_GPU),
]


def amp_on(device, monkeypatch):
    """Let AmpOptimWrapper be built without an accelerator: its check answers yes, its scaler is that for the CPU."""
    if device == 'cpu':
        grad_scaler('cpu')
        module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
        monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
        monkeypatch.setattr(f'{module}.GradScaler', functools.partial(grad_scaler, 'cpu'))


class Net(nn.Module):
    """Two pre-trained layers and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.backbone(x))).float().square().mean()


def config_of(kind, **options):
    """The config of a wrapper: 'mmengine' and 'by hand' without rollback, 'off' at level 0, 'on' at LEVEL."""
    config = {'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}, **options}
    if kind in ('off', 'on'):
        level = LEVEL if kind == 'on' else 0.0
        rollback = {'max_level': level, 'min_level': level, 'form': 'single_tensor', 'log': False}
        config.update(constructor='olor_mm.OLOROptimWrapperConstructor', rollback={**rollback, 'roots': ('',)})
    return config


def build(kind, device='cpu', **options):
    torch.manual_seed(0)
    model = Net().to(device)
    return model, build_optim_wrapper(model, config_of(kind, **options))


def batch(i, device='cpu', bad=False):
    """The inputs of iteration i; bad ones overflow the gradients."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(i))
    return (x * float('inf') if bad else x).to(device)


class Run:
    """Training with one wrapper of one kind.

    'by hand' is MMEngine's wrapper and, after each update of the parameters, the rollback written out.
    """

    def __init__(self, kind, place=('OptimWrapper', 'cpu'), max_counts=None, init_counts=0, **options):
        self.device = place[1]
        if self.device == 'cuda':
            # Low enough for float16: the default one overflows in its first steps.
            options.setdefault('loss_scale', 1024.0)
        self.model, self.wrapper = build(kind, self.device, type=place[0], **options)
        self.theta_0 = {p: p.detach().clone() for p in self.model.parameters()} if kind == 'by hand' else {}
        if max_counts is not None:
            self.wrapper.initialize_count_status(self.model, init_counts, max_counts)

    def step(self, i, bad=False, overflows=None):
        """An iteration; ``overflows`` says whether the scaler must skip the update, where not only ``bad`` says so."""
        with self.wrapper.optim_context(self.model):
            loss = self.model(batch(i, self.device, bad))
        self.wrapper.update_params(loss)
        if self.wrapper.should_update() and not (bad if overflows is None else overflows):
            self.pull()

    @torch.no_grad()
    def pull(self):
        for group in self.wrapper.optimizer.param_groups:
            ratio = group['lr'] / group.get('initial_lr', group['lr'])
            for p in group['params']:
                if p in self.theta_0:
                    p.copy_(torch.lerp(p, self.theta_0[p], ratio * LEVEL))

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]

    def grads(self):
        return [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]


def equal(ours, theirs):
    """Whether two nested structures are the same, tensors to the bit."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def without_rollback(state):
    """A wrapper's or an optimizer's state dict without what rollback adds to it."""
    if isinstance(state, dict):
        return {k: without_rollback(v) for k, v in state.items() if not str(k).startswith('rollback')}
    return [without_rollback(v) for v in state] if isinstance(state, list) else state
