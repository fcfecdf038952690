"""Ranks that start from other weights, another theta_0, other levels or settings are found before the first step."""

import copy

import pytest
import torch
from mmengine.model import MMSeparateDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from olor_mm.engine import RankDisagreementError
from olor_mm.engine.agreement import _same_bits, checksum

from ._ranks import on_ranks
from ._replicas import SmoothModel, replica, replica_config, state_of
from ._toy import make_runner

# ---------------------------------------------------------------- the checksum


def next_up(positive):
    """The next larger numbers; not every torch has ``nextafter`` of float16."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[positive.element_size()]
    return (positive.view(bits) + 1).view(positive.dtype)


def changes(tensor):
    """Tensors that differ from ``tensor``, each in its own way."""
    flat = tensor.flatten()
    yield 'one element', torch.cat([flat[:1] + 1, flat[1:]])
    yield 'the last bit', torch.cat([flat[:-1], next_up(flat[-1:])])
    yield 'signs', -flat
    yield 'order', flat.flip(0)
    yield 'two swapped', torch.cat([flat[1:2], flat[:1], flat[2:]])
    yield 'moved by one', flat.roll(1)
    yield 'NaN', torch.cat([flat[:1] * float('nan'), flat[1:]])
    yield 'zeros', flat * 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('size', [3, 2**17])
def test_checksum_sees_every_change(dtype, size):
    tensor = torch.rand(size, dtype=torch.float64).add(0.5).to(dtype)
    found = {checksum(tensor).item()}
    for what, other in changes(tensor):
        value = checksum(other.to(dtype)).item()
        assert value == checksum(other.to(dtype).clone()).item()
        assert value not in found, what
        found.add(value)


@pytest.mark.parametrize('name', ['bool', 'uint8', 'int16', 'int64', 'complex64', 'complex128'])
def test_checksum_takes_any_dtype_and_layout(name):
    tensor = torch.arange(24).reshape(2, 3, 2, 2).to(getattr(torch, name))
    assert checksum(tensor) == checksum(tensor.to(memory_format=torch.channels_last))
    assert checksum(tensor) != checksum(torch.zeros_like(tensor))
    assert checksum(tensor[:0]) == 0
    assert checksum(tensor[0, 0, 0, 0]) == checksum(tensor[0, 0, 0, :1])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_checksum_does_not_depend_on_where_a_tensor_lies(dtype):
    whole = torch.randn(40).to(dtype)
    for start in range(5):
        for size in (0, 1, 7, 30):
            part = whole[start : start + size]
            assert checksum(part) == checksum(part.clone())


@pytest.mark.parametrize('size', [3, 9])
def test_bits_are_compared_and_not_numbers(size):
    one = torch.tensor([0.0, float('nan'), 1.0] * (size // 3))
    assert _same_bits(one, one.clone())
    assert not _same_bits(one, -one)
    assert not _same_bits(one, one.double())
    square = torch.randn(size, size)
    assert not _same_bits(square, square.t())
    assert _same_bits(square, square.clone())


def test_checksum_sees_changes_in_every_chunk():
    tensor = torch.zeros(2**22 + 5)
    found = {checksum(tensor).item()}
    for i in (0, 2**22 - 1, 2**22, 2**22 + 4):
        changed = tensor.clone()
        changed[i] = 1.0
        found.add(checksum(changed).item())
    assert len(found) == 5


@pytest.mark.parametrize('size', [1, 2, 40, 41])
def test_checksum_is_splitmix64_of_bits_and_positions(size):
    """Against plain integers of Python; two elements are one of them, the last of an odd number one itself."""
    tensor = torch.randn(size)
    even = size // 2 * 2
    words = [
        *enumerate(tensor[:even].view(torch.int64).tolist()),
        *enumerate(tensor[even:].view(torch.int32).tolist(), even),
    ]
    mask, total = 2**64 - 1, 0
    for i, bits in words:
        z = (bits + (i + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        total += z ^ (z >> 31)
    assert checksum(tensor).item() & mask == total & mask


# ---------------------------------------------------------------- the comparison


def wrapped(model, wrap=DistributedDataParallel, lr=0.1, anchor=None, **rollback):
    """The model in DDP and its optimizer wrapper, as a Runner builds them."""
    model = wrap(model)
    settings = {'max_level': 0.1, 'min_level': 0.01, 'anchor': anchor, **rollback}
    optimizer = {'type': 'SGD', 'lr': lr, 'momentum': 0.9}
    config = {'constructor': 'olor_mm.OLOROptimWrapperConstructor', 'optimizer': optimizer, 'rollback': settings}
    return model, build_optim_wrapper(model, config)


def step(model, wrapper):
    wrapper.update_params(model(torch.ones(2, 4), torch.zeros(2, 2), mode='loss')['loss'])


def attempt(model, wrapper, change=None):
    """The error of the first step; None if it was made."""
    wrapper.initialize_count_status(model, 0, 10)
    before = [p.detach().clone() for p in model.parameters()]
    if change is not None:
        with torch.no_grad():
            change(model.module)
    changed = [p.detach().clone() for p in model.parameters()]
    try:
        step(model, wrapper)
    except RankDisagreementError as error:
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), changed, strict=True)), 'a step was made'
        return str(error)
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)), 'no step was made'
    return None


def nudge(model):
    weight = model.backbone.blocks[1].fc.weight
    weight[0, 0] = torch.nextafter(weight[0, 0], weight[0, 0] + 1)


def poison(model):
    model.backbone.blocks[0].fc.bias[1] = float('nan')


def differing(rank, world, folder):
    """Case to error, of one rank. The last one is the odd one."""
    torch.distributed.init_process_group('gloo')
    odd = rank == world - 1
    found = {}

    def case(name, change=None, prepare=lambda model: None, wrap=DistributedDataParallel, **options):
        torch.manual_seed(1)
        model = SmoothModel()
        prepare(model)
        found[name] = attempt(*wrapped(model, wrap, **options), change if odd else None)

    def ignoring(model):
        model._ddp_params_and_buffers_to_ignore = ['head.weight']

    def frozen(model):
        model.backbone.patch_embed.requires_grad_(False)

    def ignored(model):
        model.head.weight[0, 0] += 1

    def thawed(model):
        model.backbone.patch_embed.weight[0, 0] += 1

    torch.manual_seed(1)
    pretrained = SmoothModel()
    torch.save(pretrained.state_dict(), f'{folder}/same_{rank}.pth')
    if odd:
        with torch.no_grad():
            nudge(pretrained)
    torch.save(pretrained.state_dict(), f'{folder}/own_{rank}.pth')
    case('alike')
    case('weights', nudge)
    case('frozen', thawed, frozen)
    case('ignored', ignored, ignoring)
    case('same file', anchor=f'{folder}/same_{rank}.pth')
    case('anchor', anchor=f'{folder}/own_{rank}.pth')
    case('levels', power=2 if odd else 1)
    case('roots', roots=('backbone', 'head') if odd else ('backbone',))
    case('learning rate', lr=0.2 if odd else 0.1)
    case('form', form='single_pass' if odd else 'foreach')
    case('off', nudge, max_level=0.0, min_level=0.0)
    return found


def test_every_difference_is_named_on_every_rank(tmp_path):
    ranks = on_ranks(3, differing, 3, str(tmp_path))
    assert ranks[0] == ranks[1] == ranks[2]
    found = ranks[0]
    assert [name for name, error in found.items() if error is None] == ['alike', 'ignored', 'same file', 'off']
    names = {
        'weights': 'the weights of 1 of 18 parameters (backbone.blocks.1.fc.weight) differ between ranks 0-1 and',
        'frozen': 'the weights of 1 of 18 parameters (backbone.patch_embed.weight) differ',
        'anchor': 'the theta_0 of 1 of 18 parameters (backbone.blocks.1.fc.weight) differ',
        'levels': 'the levels of 8 of 18 parameters (backbone.blocks.0.norm.weight, ',
        'roots': 'the theta_0 of 2 of 18 parameters (head.weight, head.bias) differ',
        'learning rate': 'the optimizer settings of 18 of 18 parameters (backbone.patch_embed.weight, ',
        'form': 'the optimizer settings of 18 of 18 parameters (backbone.patch_embed.weight, ',
    }
    remedies = {
        'weights': 'load_from, or the checkpoint to resume from, is the same file on every machine',
        'anchor': 'the file of optim_wrapper.rollback.anchor',
        'levels': 'give every machine the same optim_wrapper.rollback',
        'learning rate': 'the same config of the optimizer',
        'form': "with form='single_pass', see in its log whether each can compile the kernels",
    }
    for wanted in (names, remedies):
        for name, text in wanted.items():
            assert text in found[name], (name, found[name])


def separate(rank):
    """Two networks with two optimizers, each in a DDP of its own."""
    torch.distributed.init_process_group('gloo')

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = SmoothModel()
            self.other = SmoothModel()

    torch.manual_seed(1)
    model = MMSeparateDistributedDataParallel(Pair())
    errors = []
    with torch.no_grad():
        if rank:
            nudge(model.module.other.module)
    for child in (model.module.one, model.module.other):
        _, wrapper = wrapped(child, wrap=lambda module: module)
        errors.append(attempt(child, wrapper))
    return errors


def test_networks_wrapped_one_by_one():
    one, two = on_ranks(2, separate)
    assert one == two
    assert one[0] is None
    assert 'backbone.blocks.1.fc.weight' in one[1]


def later(rank):
    """NaN on all ranks is no difference; after the first step a rank may load alone without waiting for the others."""
    torch.distributed.init_process_group('gloo')
    torch.manual_seed(1)
    model, wrapper = wrapped(SmoothModel())
    wrapper.initialize_count_status(model, 0, 10)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        poison(model.module)
    step(model, wrapper)
    if rank:
        model.load_state_dict(state)
    step(model, wrapper)
    # Without DDP nobody says that the others get here: rank 0 does not.
    if rank:
        alone, wrapper = wrapped(SmoothModel(), wrap=lambda module: module)
        step(alone, wrapper)
    return wrapper.rollback_session.agreement.done


def test_nobody_is_asked_twice_or_without_need():
    assert on_ranks(2, later) == [True, True]


# ---------------------------------------------------------------- through the Runner


def run(rank, work_dir, files, resume):
    config = replica_config(work_dir, 2, load_from=files[rank], resume=resume)
    runner = replica(config)
    try:
        runner.train()
    except RankDisagreementError as error:
        return str(error)
    return state_of(runner)


def test_a_stale_file_on_one_machine(tmp_path):
    torch.manual_seed(5)
    model = SmoothModel()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'new.pth')
    with torch.no_grad():
        nudge(model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'stale.pth')
    files = [str(tmp_path / 'new.pth'), str(tmp_path / 'stale.pth')]
    errors = on_ranks(2, run, str(tmp_path / 'work'), files, False)
    assert errors[0] == errors[1]
    assert 'weights of 1 of 18 parameters (backbone.blocks.1.fc.weight) differ between rank 0 and rank 1' in errors[0]
    assert 'theta_0' not in errors[0]


def test_resumed_from_another_checkpoint(tmp_path):
    config = replica_config(tmp_path / 'alone')
    runner = make_runner(config)
    runner.train()
    files = [str(tmp_path / 'alone' / f'epoch_{epoch}.pth') for epoch in (1, 2)]
    errors = on_ranks(2, run, str(tmp_path / 'work'), files, True)
    assert errors[0] == errors[1]
    assert 'the weights of 18 of 18 parameters' in errors[0]
    assert 'the optimizer settings' in errors[0]
    assert 'theta_0 of' not in errors[0]
    same = on_ranks(2, run, str(tmp_path / 'again'), [files[0], files[0]], True)
    torch.testing.assert_close(same[0]['weights'], state_of(runner)['weights'], rtol=0, atol=1e-13)
