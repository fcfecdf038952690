"""What is unfrozen late trains as with an optimizer of its own, whatever the optimizer, and through a saved state."""

import io

import pytest
import torch

from olor_mm.models.unfreezing import thaw

from ._toy import tuned

OPTIMIZERS = {
    'Adadelta': {'lr': 1.0}, 'Adafactor': {'lr': 0.01}, 'Adagrad': {'lr': 0.01}, 'Adam': {'lr': 0.01, 'amsgrad': True},
    'AdamW': {'lr': 0.01}, 'Adamax': {'lr': 0.01}, 'ASGD': {'lr': 0.05}, 'NAdam': {'lr': 0.01},
    'RAdam': {'lr': 0.01}, 'RMSprop': {'lr': 0.01, 'momentum': 0.9, 'centered': True}, 'Rprop': {'lr': 0.01},
    'SGD': {'lr': 0.05, 'momentum': 0.9, 'nesterov': True},
}  # fmt: skip


def step(model, *optimizers):
    x = torch.randn(8, 4)
    model.train()
    torch.manual_seed(1)
    model(x, x[:, :2], mode='loss')['loss'].backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def run(kind, apart=False, saved_at=None, steps=6):
    """Weights after some steps, of which the second half trains all of a model; or the state at the end."""
    torch.manual_seed(0)
    model = tuned('Linear')
    options = dict(OPTIMIZERS[kind])
    if kind != 'Rprop':
        options['weight_decay'] = 0.1
    late = [p for p in model.parameters() if not p.requires_grad]
    made = getattr(torch.optim, kind)
    optimizers = [made([*model.head.parameters()] if apart else model.parameters(), **options)]
    before = [p.detach().clone() for p in late]
    for i in range(steps):
        if i == 3:
            assert all(torch.equal(p, old) for p, old in zip(late, before, strict=True))
            thaw(model, {str(j): p for j, p in enumerate(late)})
            if apart:
                optimizers.append(made(late, **options))
        if i == saved_at:
            file = io.BytesIO()
            torch.save((model.state_dict(), [o.state_dict() for o in optimizers]), file)
            file.seek(0)
            state, states = torch.load(file, weights_only=False)
            model.load_state_dict({key: value + 0 for key, value in state.items()})
            optimizers = [made(model.parameters(), **options)]
            optimizers[0].load_state_dict(states[0])
        step(model, *optimizers)
    assert not any(torch.equal(p, old) for p, old in zip(late, before, strict=True))
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize('kind', [name for name in OPTIMIZERS if hasattr(torch.optim, name)])
def test_every_optimizer(kind):
    found = run(kind)
    # Several tensors in one call, or in two, round alike.
    for p, expected in zip(found, run(kind, apart=True), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=0)
    for at in (2, 3, 4):
        for p, expected in zip(run(kind, saved_at=at), found, strict=True):
            torch.testing.assert_close(p, expected, rtol=0, atol=0)
