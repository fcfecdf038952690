"""Padding prompts: the frame pixel by pixel, what is trained, and models and images that it cannot take."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

H, W, B = 12, 16, 3


class Net(nn.Module):
    """A ConvNet with all that a mode changes, and a dropout between frozen parts."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.noise = nn.Dropout(0.5)
        self.stages = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return self.stages(self.noise(self.stem(x)))


class NetModel(BaseModel):
    def __init__(self, backbone=Net):
        super().__init__()
        self.backbone = backbone()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone(x).mean((2, 3)))


class BaseSegmentor(NetModel):
    """By its name a segmentor, as those of mmseg are by that of their base."""


def build(of=NetModel, **method):
    torch.manual_seed(0)
    model = MODELS.build({
        'type': 'olor_mm.Tuned', 'of': of, 'method': {'type': 'PaddingPrompt', 'size': (H, W), 'width': B, **method},
    })  # fmt: skip
    with torch.no_grad():
        # Every pixel another, to see where it goes.
        for number, p in enumerate(border_of(model)):
            p.add_(torch.arange(p.numel()).reshape(p.shape) / p.numel() + number + 1)
    return model


def border_of(model):
    border = model.backbone.border
    return [border.rows, border.columns]


def framed(model, x, mode):
    """The images with their border, pixel by pixel."""
    rows, columns = border_of(model)
    height, width = (H + 2 * B, W + 2 * B) if mode == 'pad' else (H, W)
    at = 0 if mode == 'replace' else B
    pixels = []
    for i in range(height):
        for j in range(width):
            if i < B:
                pixel = rows[:, i, j].expand(len(x), -1)
            elif i >= height - B:
                pixel = rows[:, i - (height - 2 * B), j].expand(len(x), -1)
            elif j < B:
                pixel = columns[:, i - B, j].expand(len(x), -1)
            elif j >= width - B:
                pixel = columns[:, i - B, j - (width - 2 * B)].expand(len(x), -1)
            else:
                pixel = x[:, :, i - at, j - at]
            pixels.append(pixel)
    return torch.stack(pixels, -1).reshape(len(x), 3, height, width)


@pytest.mark.parametrize('mode', ['pad', 'replace'])
def test_output_and_gradient_are_those_of_framed_images(mode):
    model = build(mode=mode).train()
    count = {'pad': 3 * (2 * B * (W + 2 * B) + 2 * B * H), 'replace': 3 * (2 * B * W + 2 * B * (H - 2 * B))}[mode]
    assert sum(p.numel() for p in border_of(model)) == count
    assert f'{count:,} parameters' in model.tuning.methods[0].report(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'backbone.border.rows', 'backbone.border.columns', 'head.weight', 'head.bias'}
    for batch in (2, 5):
        x = torch.randn(batch, 3, H, W)
        plain = copy.deepcopy(model.backbone).eval()
        wanted = model.head(Net.forward(plain, framed(model, x, mode)).mean((2, 3)))
        ours = model(x)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)
        grads = [torch.autograd.grad(out.square().sum(), border_of(model)) for out in (ours, wanted)]
        torch.testing.assert_close(*grads)
        assert all(grad.abs().max() > 0 for grad in grads[0])
    # What is frozen has counted no batch.
    assert model.backbone.stages[0][1].num_batches_tracked == 0


def test_it_starts_as_the_mean_colour_or_from_a_gaussian():
    model = MODELS.build({'type': 'olor_mm.Tuned', 'of': NetModel, 'method': {'type': 'PaddingPrompt', 'size': 8}})
    assert [tuple(p.shape) for p in border_of(model)] == [(3, 20, 28), (3, 8, 20)]
    assert not any(p.any() for p in border_of(model))
    method = {'type': 'PaddingPrompt', 'size': 200, 'init': 'normal'}
    for p in border_of(MODELS.build({'type': 'olor_mm.Tuned', 'of': NetModel, 'method': method})):
        assert p.mean().item() == pytest.approx(0, abs=0.03)
        assert p.std().item() == pytest.approx(1, abs=0.03)


def test_the_size_of_the_papers_runs():
    method = {'type': 'PaddingPrompt', 'size': 224}
    model = MODELS.build({'type': 'olor_mm.Tuned', 'of': NetModel, 'method': method})
    assert sum(p.numel() for p in border_of(model)) == 28080


@pytest.mark.parametrize('mode', ['pad', 'replace'])
def test_half_precision_and_copies(mode):
    model = build(mode=mode)
    x = torch.randn(2, 3, H, W)
    half = copy.deepcopy(model).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.backbone.border.rows.zero_()
    assert not torch.allclose(twin(x), model(x))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 3, W, H), r'images of size \(16, 12\) with 3 channels, but size=\(12, 16\).*set model.method.size'),
        ((2, 1, H, W), r'with 1 channels, but size=\(12, 16\), channels=3'),
        ((2, 3, H + 1, W), r'images of size \(13, 16\)'),
    ],
)
def test_images_of_another_size_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.randn(shape))


def test_checkpoints(tmp_path):
    model = build()
    plain = NetModel()
    assert not model.load_state_dict(plain.state_dict(), strict=True).missing_keys
    file = tmp_path / 'tuned.pth'
    torch.save({'state_dict': model.state_dict()}, file)
    twin = build(init='normal')
    load_checkpoint(twin, str(file), strict=True)
    x = torch.randn(2, 3, H, W)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=0, atol=0)
    for other in (build(width=2), build(size=(H, W + 1)), build(mode='replace')):
        # MMEngine's loader is not strict.
        with pytest.raises(ValueError, match=r'rows of the padding prompt are \(3, 6, 22\) in the checkpoint'):
            load_checkpoint(copy.deepcopy(other), str(file))


def test_what_heads_read_places_from_is_not_moved():
    with pytest.raises(
        ValueError, match=r"mode='pad' moves all that the heads of BaseSegmentor see by 3 pixels.*'replace'"
    ):
        build(BaseSegmentor)
    assert build(BaseSegmentor, mode='replace').backbone.border.takes == (3, H, W)


WRONG = {
    'no size': ({'size': ()}, r'size=\(\) must be the height and width'),
    'a size of three': ({'size': (3, 4, 5)}, 'must be the height and width'),
    'a size of letters': ({'size': 'big'}, "size='big' must be the height and width"),
    'no width': ({'width': 0}, 'width=0 must be a whole number'),
    'half a width': ({'width': 1.5}, 'width=1.5 must be a whole number'),
    'channels': ({'channels': -3}, 'channels=-3 must be a whole number'),
    'mode': ({'mode': 'padding'}, r"mode='padding' must be one of \('pad', 'replace'\)"),
    'init': ({'init': 'uniform'}, r"init='uniform' must be one of \('zeros', 'normal'\)"),
    'nothing left': ({'mode': 'replace', 'width': 6}, r'width=6 leaves nothing of images of size=\(12, 16\)'),
    'typo': ({'widht': 3}, "no option 'widht', did you mean 'width'"),
    'no such part': ({'part': 'net'}, "part='net': NetModel has no 'net'"),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said(case):
    method, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        build(**method)


def test_twice_is_refused():
    method = {'type': 'PaddingPrompt', 'size': (H, W)}
    with pytest.raises(ValueError, match=r"part called 'border' already.*once"):
        MODELS.build({'type': 'olor_mm.Tuned', 'of': NetModel, 'method': [method, method]})
