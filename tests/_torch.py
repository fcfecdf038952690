"""What this torch can do, for tests of things that older ones lack."""

from typing import Any

import pytest
import torch


def build_or_skip(cls: type, params: Any, **options: Any) -> torch.optim.Optimizer:
    """The optimizer; skips the test where it asks for a fused form that this torch has not got on this device."""
    try:
        return cls(params, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        if not options.get('fused'):
            raise
        pytest.skip(f'no fused {cls.__name__} in torch {torch.__version__}: {error}')


def grad_scaler(device: str, **options: Any) -> Any:
    """A GradScaler for the device; skips the test where torch has it for CUDA alone."""
    if not hasattr(torch.amp, 'GradScaler'):
        if device == 'cuda':
            return torch.cuda.amp.GradScaler(**options)
        pytest.skip(f'torch {torch.__version__} has no GradScaler for the CPU')
    return torch.amp.GradScaler(device, **options)


def needs_fsdp_on_the_cpu(test: Any) -> Any:
    """A mark: skips the test where torch's FSDP asks of the CPU's streams what they do not take (2.1)."""
    try:
        torch.cpu.Stream(priority=0)
        runs = True
    except TypeError:
        runs = False
    return pytest.mark.skipif(not runs, reason=f'FSDP of torch {torch.__version__} does not run on the CPU')(test)
