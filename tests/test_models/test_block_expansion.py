"""New blocks: where they are, that they do nothing at the start, what is trained, and every checkpoint there is."""

import copy
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from olor_mm.layers import assign_layers
from olor_mm.models import BlockExpansion
from olor_mm.rollback import ANCHOR_KEY
from tests.test_engine._ranks import on_ranks
from tests.test_engine._replicas import replica
from tests.test_engine._toy import make_runner, toy_config, weights

from ._vit import ViTModel, expanded, pretrained

#: New blocks, distance, and numbers of the new ones among all, from 0: the paper's, of 12 blocks.
TABLE = [(1, 11, [11]), (2, 6, [6, 13]), (3, 4, [4, 9, 14]), (4, 3, [3, 7, 11, 15])]
#: With 2 new blocks among 4: the number that a block has with them -> the block that it is, or is a copy of.
SOURCE = {0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 3}
NEW = (2, 5)
ZERO = ('attn.proj.weight', 'attn.proj.bias', 'ffn.layers.1.weight', 'ffn.layers.1.bias')
INPUT = torch.linspace(-2, 2, 12).reshape(3, 4)


def renumbered(state, prefix='backbone.'):
    """What a state dict becomes, written out."""
    found = {key: value for key, value in state.items() if not key.startswith(f'{prefix}layers.')}
    for number, source in SOURCE.items():
        old = f'{prefix}layers.{source}.'
        for key, value in state.items():
            if key.startswith(old):
                rest = key[len(old) :]
                found[f'{prefix}layers.{number}.{rest}'] = value * 0 if number in NEW and rest in ZERO else value
    return {**found, f'{prefix}new_blocks': torch.tensor(NEW)}


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def check_identity(model, plain, inputs=INPUT):
    model.eval(), plain.eval()
    with torch.no_grad():
        found, wanted = model(inputs), plain(inputs)
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# ------------------------------------------------------------------ places


@pytest.mark.parametrize(('blocks', 'every', 'places'), TABLE)
def test_new_blocks_are_at_the_papers_places(blocks, every, places):
    assert expanded({'depth': 12}, blocks=blocks).backbone.new_blocks.tolist() == places
    assert expanded({'depth': 12}, every=every).backbone.new_blocks.tolist() == places


@pytest.mark.parametrize(
    ('depth', 'method', 'places'),
    [(12, {}, [4, 9, 14]), (2, {'blocks': 1}, [2]), (1, {'blocks': 1}, [1]), (3, {'every': 1}, [1, 3, 5])],
)
def test_other_depths(depth, method, places):
    model = expanded({'depth': depth}, **method)
    assert model.backbone.new_blocks.tolist() == places
    assert len(model.backbone.layers) == model.backbone.num_layers == depth + len(places)


# ------------------------------------------------------------------ identity


def test_init_weights_leaves_an_identity():
    torch.manual_seed(3)
    model = expanded({'out_indices': (0, 1, 2, 3)}, blocks=2)
    model.init_weights()
    plain = ViTModel(backbone={'out_indices': (0, 1, 2, 3)})
    inverse = {SOURCE[i]: i for i in SOURCE if i not in NEW}
    own = model.state_dict()
    plain.load_state_dict(
        {
            key: own[re.sub(r'layers\.(\d+)', lambda m: f'layers.{inverse[int(m[1])]}', key)]
            for key in plain.state_dict()
        }
    )
    check_identity(model, plain)
    check_same(own, renumbered(plain.state_dict()))


@pytest.mark.parametrize('outs', [(-1,), (0, 1, 2, 3), (1,), (0, 3)])
def test_outputs_are_those_of_before(outs):
    model, plain = expanded({'out_indices': outs}, blocks=2), pretrained(out_indices=outs)
    model.load_state_dict(plain.state_dict())
    check_identity(model, plain)
    assert not torch.equal(plain(INPUT)[0], ViTModel(backbone={'out_indices': outs})(INPUT)[0])


def test_every_new_block_gets_a_gradient():
    model = expanded({'out_indices': (0, 1, 2, 3)}, blocks=2)
    model.load_state_dict(pretrained(out_indices=(0, 1, 2, 3)).state_dict())
    sum(out.square().sum() for out in model(INPUT)).backward()
    for number in NEW:
        assert all(model.get_parameter(f'backbone.layers.{number}.{name}').grad.abs().max() > 0 for name in ZERO)


def test_the_new_blocks_and_what_is_outside_are_trained():
    model = expanded(blocks=2, train=r'pos_embed')
    blocks = {f'backbone.layers.{i}.{name}' for i in NEW for name, _ in model.backbone.layers[i].named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == blocks | {'head.weight', 'head.bias', 'backbone.pos_embed'}


def test_a_block_that_was_frozen_has_a_copy_that_is_not():
    plain = ViTModel()
    plain.backbone.layers.requires_grad_(False)
    method = BlockExpansion(every=2)
    method.apply(plain)
    assert {n for n in range(6) if all(p.requires_grad for p in plain.backbone.layers[n].parameters())} == set(NEW)


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_weights_of_before_are_renumbered(prefix):
    model, plain = expanded(blocks=2), pretrained()
    given = {prefix + key: value for key, value in plain.state_dict().items()}
    before = dict(given)
    target = nn.ModuleDict({'module': model}) if prefix else model
    target.load_state_dict(given, strict=True)
    check_same(model.state_dict(), renumbered(plain.state_dict()))
    assert given.keys() == before.keys()


def test_weights_of_before_come_from_files(tmp_path, caplog):
    plain, model = pretrained(), expanded(blocks=2)
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'whole.pth')
    load_checkpoint(model, str(tmp_path / 'whole.pth'), strict=True)
    check_same(model.state_dict(), renumbered(plain.state_dict()))
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'whole.pth'), 'prefix': 'backbone.'}
    model = expanded({'init_cfg': init_cfg}, blocks=2)
    model.init_weights()
    check_same(model.backbone.state_dict(), renumbered(plain.backbone.state_dict(), ''))
    assert not any(word in caplog.text for word in ('missing', 'unexpected'))


def trained_one(**options):
    model = expanded(**{'blocks': 2, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model


def test_weights_of_after_are_taken_as_they_are(tmp_path):
    trained, model = trained_one(), expanded(blocks=2)
    model.load_state_dict(trained.state_dict())
    check_same(model.state_dict(), trained.state_dict())
    torch.save({'state_dict': trained.state_dict()}, tmp_path / 'run.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'run.pth'), 'prefix': 'backbone.'}
    model = expanded({'init_cfg': init_cfg}, blocks=2)
    model.init_weights()
    check_same(model.backbone.state_dict(), trained.backbone.state_dict())
    # By other code, which marks nothing.
    state = trained.state_dict()
    del state['backbone.new_blocks']
    model = expanded(blocks=2)
    model.load_state_dict(state)
    check_same(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize('blocks', [1, 2])
def test_what_was_trained_alone_is_taken_as_it_is(blocks):
    trained, model = trained_one(blocks=blocks), expanded(blocks=blocks)
    own = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(own, strict=False)
    check_same(model.state_dict(), {**before, **own})


def test_initialised_again_it_is_an_identity_again():
    model = expanded(blocks=2)
    model.load_state_dict(trained_one().state_dict())
    model.init_weights()
    assert all(not model.get_parameter(f'backbone.layers.{i}.{name}').any() for i in NEW for name in ZERO)


def test_a_head_alone_leaves_the_blocks_as_they_are():
    model = trained_one()
    before = copy.deepcopy(model.state_dict())
    head = {key: torch.zeros_like(value) for key, value in before.items() if key.startswith('head')}
    model.load_state_dict(head, strict=False)
    check_same(model.state_dict(), {**before, **head})
    model.backbone.load_state_dict({}, strict=False)
    check_same(model.state_dict(), {**before, **head})


def test_what_is_missing_is_told():
    state = pretrained().state_dict()
    del state['backbone.layers.3.ln1.bias']
    with pytest.raises(RuntimeError, match=r'Missing.*layers\.4\.ln1\.bias.*layers\.5\.ln1\.bias') as error:
        expanded(blocks=2).load_state_dict(state)
    assert 'ffn' not in str(error.value)


@pytest.mark.parametrize('case', ['another number', 'other places', 'half', 'deeper'])
def test_weights_that_were_expanded_otherwise_are_refused(case):
    if case == 'deeper':
        state, message = (
            pretrained(depth=5).state_dict(),
            r'has 5 blocks in backbone\.layers, up to number 4: it is neit',
        )
    elif case == 'half':
        state = trained_one().state_dict()
        state = {key: value for key, value in state.items() if 'layers.5.' not in key and 'new_blocks' not in key}
        message = r'has 5 blocks in backbone\.layers, up to number 4'
    else:
        state = trained_one(**{'another number': {'blocks': 4}, 'other places': {'blocks': None, 'every': 3}}[case])
        state, message = state.state_dict(), r'expanded with the blocks \[.*\] new, the model with \[2, 5\]: give'
    with pytest.raises(ValueError, match=message):
        expanded(blocks=2).load_state_dict(state)


def test_a_copy_is_a_model_of_its_own():
    model, plain = expanded(blocks=2), pretrained()
    before = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    twin.load_state_dict(plain.state_dict())
    check_same(twin.state_dict(), renumbered(plain.state_dict()))
    twin.init_weights()
    assert not any(twin.get_parameter(f'backbone.layers.{i}.{name}').any() for i in NEW for name in ZERO)
    check_same(model.state_dict(), before)
    check_same(copy.deepcopy(model.backbone).state_dict(), model.backbone.state_dict())


# ------------------------------------------------------------------ with others


def test_layers_are_counted_with_the_new_blocks():
    table = assign_layers(expanded(blocks=2))
    assert table.num_layers == 6
    assert {table.index[f'backbone.layers.{i}.ln1.weight'] - 1 - i for i in range(6)} == {0}


def test_methods_that_go_by_names_come_after():
    for methods in (['TopK', 'BlockExpansion'], ['BlockExpansion', 'TopK']):
        cfgs = [{'type': name, **({'k': 3} if name == 'TopK' else {'blocks': 2})} for name in methods]
        model = MODELS.build({'type': 'olor_mm.Tuned', 'of': 'ViTModel', 'method': cfgs})
        trained = {n for n in range(6) if all(p.requires_grad for p in model.backbone.layers[n].parameters())}
        assert trained == {2, 3, 4, 5}


def test_what_another_method_puts_into_a_new_block_is_its_own():
    """A of LoRA must not be 0, for B is, and neither would ever change."""
    targets = r'attn\.proj|ffn\.layers\.1'
    method = [{'type': 'BlockExpansion', 'blocks': 2}, {'type': 'LoRA', 'rank': 2, 'targets': targets}]
    model = MODELS.build({'type': 'olor_mm.Tuned', 'of': 'ViTModel', 'method': method})
    model.init_weights()
    drawn = {name: p for name, p in model.named_parameters() if name.endswith('lora.a')}
    assert len(drawn) == 12
    assert all(p.any() for p in drawn.values())
    first, copied = (model.get_parameter(f'backbone.layers.{i}.attn.proj.lora.a') for i in (1, 2))
    assert not torch.equal(first, copied)
    assert not model.get_parameter('backbone.layers.2.attn.proj.weight').any()
    assert model.get_parameter('backbone.layers.1.attn.proj.weight').any()


def run_config(work_dir, source, epochs=1, **overrides):
    method = {'type': 'BlockExpansion', 'blocks': 2}
    model = {'type': 'olor_mm.Tuned', 'of': 'ViTModel', 'method': method}
    config = toy_config(work_dir, model=model, load_from=source, **overrides)
    config.train_cfg.max_epochs = epochs
    return config


@pytest.fixture
def source(tmp_path):
    file = tmp_path / 'pretrained.pth'
    torch.save({'state_dict': pretrained().state_dict()}, file)
    return str(file)


@pytest.mark.parametrize('anchor', [None, 'file'])
def test_rollback_goes_back_to_the_identity(anchor, source, tmp_path):
    rollback = {'max_level': 0.3, 'min_level': 0.3, 'power': 1, 'roots': ('backbone',) if anchor else 'loaded'}
    start = renumbered(pretrained().state_dict())
    runner = make_runner(run_config(tmp_path, source, rollback={**rollback, 'anchor': anchor and source}))
    runner.train()
    state = runner.optim_wrapper.optimizer.state
    kept = {name: state[p][ANCHOR_KEY] for name, p in runner.model.named_parameters() if ANCHOR_KEY in state[p]}
    assert {name for name in kept if 'backbone' in name} == {n for n in start if re.match(r'backbone\.layers\.[25]', n)}
    for name, value in kept.items():
        if 'backbone' in name:
            assert torch.equal(value, start[name]), name
    moved = runner.model.state_dict()
    assert all(
        torch.equal(moved[name], value) for name, value in start.items() if 'backbone' in name and name not in kept
    )
    assert all(not torch.equal(moved[name], start[name]) for name in kept if name.endswith(ZERO))


def test_a_run_with_an_average_resumes_to_the_bit(source, tmp_path):
    def config(folder):
        made = run_config(tmp_path / folder, source, 2, custom_hooks=[{'type': 'EMAHook'}])
        return Config({**made, 'custom_hooks': [{'type': 'olor_mm.ResumableRandomnessHook'}, {'type': 'EMAHook'}]})

    straight = make_runner(config('straight'))
    straight.train()
    again = make_runner(config('again'), load_from=str(tmp_path / 'straight' / 'epoch_1.pth'), resume=True)
    again.train()
    check_same(weights(again), weights(straight))
    saved = [torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False) for name in ('straight', 'again')]
    check_same(*(each['ema_state_dict'] for each in saved))
    # And they are of a run that moved.
    start = renumbered(pretrained().state_dict())
    for each in saved[0]['state_dict'], {k.removeprefix('module.'): v for k, v in saved[0]['ema_state_dict'].items()}:
        assert not torch.equal(each['backbone.layers.2.attn.proj.weight'], start['backbone.layers.2.attn.proj.weight'])


def train_rank(rank, work_dir, source):
    config = run_config(work_dir, source)
    config.train_dataloader.batch_size = 2
    runner = replica(config)
    runner.train()
    return {key.removeprefix('module.'): value for key, value in weights(runner).items()}


def test_two_processes_stay_together(source, tmp_path):
    one, other = on_ranks(2, train_rank, str(tmp_path), source)
    check_same(one, other)
    start = renumbered(pretrained().state_dict())
    changed = {key for key, value in start.items() if not torch.equal(one[key], value)}
    assert changed == {key for key in start if re.match(r'head|backbone\.layers\.[25]\.', key)} - {
        'backbone.new_blocks'
    }


# ------------------------------------------------------------------ what is refused

WRONG = {
    'both': ({'blocks': 2, 'every': 2}, {}, 'blocks=2 and every=2 say the same'),
    'none': ({'blocks': 0}, {}, 'blocks=0 must be a whole number'),
    'a part of one': ({'every': 1.5}, {}, 'every=1.5 must be a whole number'),
    'not even': ({'blocks': 3}, {}, 'blocks=3 cannot be evenly put between the 4 blocks.*possible are 1, 2, 4'),
    'too far': ({'every': 5}, {}, 'every=5 leaves no place.* give 4 at most'),
    'no such part': ({'part': 'bakbone'}, {}, "part='bakbone': ViTModel has no 'bakbone'"),
    'a name': ({'block': 2}, {}, "no option 'block', did you mean 'blocks'"),
    'post-norm': ({'blocks': 2}, {'post_norm': True}, r'layers\.1 of .* is a Block, and with zeros in attn\.proj'),
    'frozen again': ({'blocks': 2}, {'freeze': 3}, r'frozen_stages=3 freezes the new block backbone\.layers\.2'),
    'no blocks': ({'blocks': 2}, {'type': 'ToyBackbone'}, 'ToyBackbone.* has no blocks in layers or stages.*ConvNeXt'),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_what_cannot_be_is_said(case):
    method, backbone, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        expanded(backbone, **method)


def test_twice_is_refused():
    with pytest.raises(ValueError, match="'backbone' is expanded already"):
        MODELS.build(
            {'type': 'olor_mm.Tuned', 'of': 'ViTModel', 'method': [{'type': 'BlockExpansion', 'blocks': 2}] * 2}
        )
