"""tools/calibrate.py: gamma against a calculation by hand, no leakage, what a saved gamma does, stops and refusals."""

import copy
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner

from olor_mm.engine.loading import load_from_local
from olor_mm.tooling import InputError, launch
from olor_mm.tooling.calibration import calibrate, folds

pytest.importorskip('mmpretrain')

from tests.test_engine._ranks import on_ranks
from tests.test_evaluation.test_calibration import every_gamma, plain_alg, right
from tests.test_tools._calibration import (
    ABSENT,
    CONFIG,
    SEEN,
    TEST,
    TRAIN,
    Watched,
    by_hand,
    on_rank,
    pixels,
    pretrained,
)


def _plain_text(cfg):
    return '\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items())


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    # Laying out the configs of all folds would take half of the time.
    monkeypatch.setattr(Config, 'pretty_text', property(_plain_text))
    monkeypatch.setattr(Watched, 'poison', None)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def write_config(folder, extra=''):
    start, config = Path(folder, 'pretrained.pth'), Path(folder, 'toy.py')
    if not start.is_file():
        torch.save({'state_dict': pretrained()}, start)
    config.write_text(CONFIG.replace('LOAD_FROM', str(start)) + extra)
    return str(config)


def fine_tune(folder, extra=''):
    config = write_config(folder, extra)
    launch.train([config, '--work-dir', str(Path(folder, 'tuned'))])
    return config, str(Path(folder, 'tuned', 'epoch_3.pth'))


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
    """A config and the checkpoint of its fine-tuning."""
    folder = tmp_path_factory.mktemp('tuned')
    with pytest.MonkeyPatch.context() as patch, DefaultScope.overwrite_default_scope('mmpretrain'):
        patch.setattr(Config, 'pretty_text', property(_plain_text))
        return fine_tune(folder)


@pytest.fixture(scope='module')
def whole(tuned, tmp_path_factory):
    """The work dir of a whole calibration, what was read in its course, and the table."""
    root = tmp_path_factory.mktemp('whole') / 'run'
    with pytest.MonkeyPatch.context() as patch, DefaultScope.overwrite_default_scope('mmpretrain'):
        patch.setattr(Config, 'pretty_text', property(_plain_text))
        Watched.reads.clear()
        calibrate([*tuned, '--work-dir', str(root)])
        return root, list(Watched.reads)


def kept(file):
    return load_from_local(str(file), 'cpu')


def found(root):
    return json.loads((root / 'results.json').read_text())


# ---------------------------------------------------------------- the figures


def seen_images():
    x, y = pixels('train', TRAIN)
    return x[torch.isin(y, torch.tensor(SEEN))], y[torch.isin(y, torch.tensor(SEEN))]


def test_alg_by_hand(whole, tuned):
    x, y = seen_images()
    _, z = by_hand(kept(tuned[1])['state_dict'], x)
    assert found(whole[0])['gammas']['ALG'] == pytest.approx(plain_alg(z, y, SEEN), rel=1e-5)


def held_out_by_hand(share=0.2, seed=0):
    """Places of the images of S that the folds are not trained on, among all training images."""
    _, y = pixels('train', TRAIN)
    places = []
    for label in SEEN:
        own = (y == label).nonzero().flatten().numpy()
        order = np.random.RandomState([seed, label]).permutation(len(own))
        places += own[order[: round(share * len(own))]].tolist()
    return sorted(places)


def check_fold(root, number):
    """The gamma of a fold, after it was found to be the best for the weights in its checkpoint."""
    fold = json.loads((root / 'plan.json').read_text())['folds'][number]
    assert sorted(fold['seen'] + fold['absent']) == SEEN
    assert len(fold['seen']) == 2
    x, y = pixels('train', TRAIN)
    x, y = x[held_out_by_hand()], y[held_out_by_hand()]
    inside, pseudo = torch.tensor([SEEN.index(label) for label in y.tolist()]), {SEEN.index(c) for c in fold['seen']}
    state = kept(root / 'pcv' / f'fold_{number}' / 'epoch_3.pth')['state_dict']
    z, before = (by_hand(weights, x)[1][:, SEEN].double() for weights in (state, pretrained()))
    least = right(before, inside, pseudo, 0)[1]
    counts = {gamma: right(z, inside, pseudo, gamma) for gamma in every_gamma(z, pseudo)}
    allowed = [sum(found) for found in counts.values() if found[1] >= least]
    result = json.loads((root / 'pcv' / f'fold_{number}' / 'result.json').read_text())['best']
    assert (result is None) == (not allowed)
    if result is None:
        return None
    found = right(z, inside, pseudo, result['gamma'])
    assert sum(found) == max(allowed)
    assert found[1] >= least
    # It lies in the middle between two margins of these very logits.
    margins = sorted(_margin(row, pseudo) for row in z.tolist())
    middles = [(a + b) / 2 for a in margins for b in margins] + [margins[0] - 1, margins[-1] + 1]
    assert min(abs(result['gamma'] - middle) for middle in middles) < 1e-4
    return result['gamma']


def _margin(row, seen):
    return max(value for c, value in enumerate(row) if c in seen) - max(v for c, v in enumerate(row) if c not in seen)


def test_pcv_by_hand(whole):
    root, _ = whole
    gammas = [gamma for gamma in (check_fold(root, number) for number in range(3)) if gamma is not None]
    assert len(gammas) > 1
    assert found(root)['gammas']['PCV'] == pytest.approx(sum(gammas) / len(gammas))


def test_the_table_by_hand(whole, tuned, capsys):
    rows = {row['name'].split(' (')[0]: row for row in found(whole[0])['table']}
    gammas = found(whole[0])['gammas']
    assert list(rows) == ['pre-trained', 'fine-tuned', 'fine-tuned, ALG', 'fine-tuned, PCV', 'fine-tuned, oracle']
    x, y = pixels('test', TEST)
    before, after = pretrained(), kept(tuned[1])['state_dict']
    bank, bank_labels = pixels('train', TRAIN)
    for name, row in rows.items():
        state = before if name == 'pre-trained' else after
        features, z = by_hand(state, x)
        gamma = {'fine-tuned, ALG': gammas['ALG'], 'fine-tuned, PCV': gammas['PCV']}.get(name, row['gamma'])
        assert row['gamma'] == gamma
        assert (gamma == 0) == (name in ('pre-trained', 'fine-tuned'))
        counts, sizes = right(z.double(), y, SEEN, gamma), [4 * TEST, 2 * TEST]
        wanted = {'S/Y': counts[0] / sizes[0], 'U/Y': counts[1] / sizes[1], 'Y/Y': sum(counts) / sum(sizes)}
        assert {part: row['accuracies'][part] / 100 for part in wanted} == pytest.approx(wanted)
        means = torch.stack(
            [torch.nn.functional.normalize(by_hand(state, bank)[0][bank_labels == c]).mean(0) for c in range(6)]
        )
        ncm = (torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(means).T).argmax(1) == y
        of_seen = torch.isin(y, torch.tensor(SEEN))
        assert row['ncm']['Y/Y'] == pytest.approx(100 * float(ncm.double().mean()))
        assert row['ncm']['U/Y'] == pytest.approx(100 * float(ncm[~of_seen].double().mean()))
    z = by_hand(after, x)[1].double()
    best = max(sum(right(z, y, SEEN, gamma)) for gamma in every_gamma(z, SEEN))
    assert rows['fine-tuned, oracle']['accuracies']['Y/Y'] == pytest.approx(100 * best / len(y))
    assert 'looks at the labels of the test' in (whole[0] / 'results.md').read_text()
    # The setting is what it is meant to be: what was absent is forgotten, and gamma gives it back.
    lost, mended = (rows[name]['accuracies']['U/Y'] for name in ('fine-tuned', 'fine-tuned, ALG'))
    assert lost < rows['pre-trained']['accuracies']['U/Y']
    assert lost < mended


# ---------------------------------------------------------------- no leakage


def test_the_test_is_read_last_and_alone(whole):
    _, reads = whole
    first = reads.index(('test', 0))
    assert {split for split, _ in reads[:first]} == {'train'}
    # Then each image of it and of the class means twice: by the pre-trained and by the fine-tuned model.
    after = reads[first:]
    assert sorted(after) == sorted(2 * [('test', i) for i in range(6 * TEST)] + 2 * [('train', i) for i in range(120)])


def test_images_of_absent_classes_and_of_the_test_are_not_read_for_gamma(whole):
    _, reads = whole
    _, y = pixels('train', TRAIN)
    before = reads[: reads.index(('test', 0))]
    assert {int(y[place]) for _, place in before} == set(SEEN)


def test_what_is_held_out_is_not_trained_on(whole):
    root, reads = whole
    counts = Counter(place for split, place in reads[: reads.index(('test', 0))] if split == 'train')
    _, y = pixels('train', TRAIN)
    away, epochs = set(held_out_by_hand()), 3
    trained = Counter(label for fold in json.loads((root / 'plan.json').read_text())['folds'] for label in fold['seen'])
    looked_at = (y[:, None] == torch.tensor(SEEN)).any(dim=1).nonzero().flatten().tolist()
    for number, place in enumerate(looked_at):
        # ALG's pass, and before it a batch of 7 by which the biases are tried out.
        wanted = 1 + (number < 7)
        # The pre-trained model and each fold look at what is held out, and the folds train on the rest of their half.
        wanted += 1 + 3 if place in away else epochs * trained[int(y[place])]
        assert counts[place] == wanted


@pytest.mark.parametrize('poison', ['noise', 'raise'])
def test_evaluation_data_cannot_reach_gamma(poison, whole, tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(Watched, 'poison', poison)
    argv = [*tuned, '--work-dir', str(tmp_path / 'run')]
    if poison == 'noise':
        calibrate(argv)
        assert found(tmp_path / 'run')['table'] != found(whole[0])['table']
    else:
        calibrate([*argv, '--no-test'])
        with pytest.raises(RuntimeError, match='the labels of the test were read'):
            calibrate([*argv, '--resume'])
    for method in ('alg', 'pcv'):
        one, other = (kept(root / f'calibrated_{method}.pth') for root in (tmp_path / 'run', whole[0]))
        assert one['calibration']['gamma'] == other['calibration']['gamma']
        assert all(torch.equal(one['state_dict'][name], value) for name, value in other['state_dict'].items())


# ---------------------------------------------------------------- what a saved gamma does


def shifted(tuned, gamma):
    x, y = pixels('test', TEST)
    _, z = by_hand(kept(tuned[1])['state_dict'], x)
    z = z.clone()
    z[:, ABSENT] += gamma
    return z, y


@pytest.mark.parametrize('method', ['alg', 'pcv'])
def test_the_saved_gamma_is_used_by_plain_tools(method, whole, tuned, tmp_path):
    file = whole[0] / f'calibrated_{method}.pth'
    gamma = found(whole[0])['gammas'][method.upper()]
    z, y = shifted(tuned, gamma)
    wanted = 100 * float((z.argmax(1) == y).double().mean())
    # tools/test.py with the config of the training.
    launch.test(
        [tuned[0], str(file), '--work-dir', str(tmp_path), '--out', str(tmp_path / 'out.json'), '--out-item', 'metrics']
    )
    assert json.loads((tmp_path / 'out.json').read_text())['accuracy/top1'] == pytest.approx(wanted, abs=1e-4)
    # MMEngine's Runner.
    cfg = Config.fromfile(tuned[0])
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), load_from=str(file), experiment_name=f'plain_{method}'))
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = None
    assert Runner.from_cfg(cfg).test()['accuracy/top1'] == pytest.approx(wanted, abs=1e-4)


def test_the_saved_gamma_is_used_by_mmpretrains_inferencer(whole, tuned):
    from mmpretrain import ImageClassificationInferencer

    from tests.test_tools._incremental import images

    file = whole[0] / 'calibrated_alg.pth'
    z, _ = shifted(tuned, found(whole[0])['gammas']['ALG'])
    inferencer = ImageClassificationInferencer(tuned[0], pretrained=str(file), device='cpu', classes=list('abcdef'))
    given, _ = images('test', TEST)
    results = inferencer([image[..., ::-1] for image in given[:12]])
    scores = torch.tensor(np.stack([result['pred_scores'] for result in results]))
    flipped = inferencer(list(given[:12]))
    scores_of_bgr = torch.tensor(np.stack([result['pred_scores'] for result in flipped]))
    wanted = z[:12].softmax(1)
    close = [torch.allclose(each, wanted, atol=1e-5) for each in (scores, scores_of_bgr)]
    assert any(close)
    chosen = results if close[0] else flipped
    assert [result['pred_label'] for result in chosen] == z[:12].argmax(1).tolist()


def test_gamma_can_be_taken_out_again(whole, tuned, tmp_path):
    out = tmp_path / 'as_it_was.pth'
    calibrate([tuned[0], str(whole[0] / 'calibrated_pcv.pth'), '--remove', str(out)])
    one, other = kept(out), kept(tuned[1])
    assert list(one['state_dict']) == list(other['state_dict'])
    assert all(torch.equal(value, other['state_dict'][name]) for name, value in one['state_dict'].items())
    assert 'calibration' not in one
    assert one['meta']['epoch'] == other['meta']['epoch']
    for argv, message in (
        ([tuned[1], '--remove', str(tmp_path / 'x.pth')], 'is not calibrated'),
        ([str(whole[0] / 'calibrated_pcv.pth'), '--remove', str(out)], 'exists'),
        ([str(whole[0] / 'calibrated_pcv.pth'), '--work-dir', str(tmp_path)], 'is calibrated already: gamma .* by PCV'),
    ):
        with pytest.raises(InputError, match=message):
            calibrate([tuned[0], *argv])


def test_a_given_gamma(tuned, tmp_path):
    calibrate([*tuned, '--gamma', '-1.5', '--no-test', '--work-dir', str(tmp_path / 'run')])
    state, before = kept(tmp_path / 'run' / 'calibrated_given.pth')['state_dict'], kept(tuned[1])['state_dict']
    moved = torch.zeros(6)
    moved[ABSENT] = -1.5
    torch.testing.assert_close(state['head.fc.bias'], before['head.fc.bias'] + moved)
    assert sorted(path.name for path in (tmp_path / 'run').iterdir() if path.suffix == '.pth') == [
        'calibrated_given.pth'
    ]


# ---------------------------------------------------------------- stops and resumes


@HOOKS.register_module(force=True)
class Stops(Hook):
    """Ctrl-C before an iteration of a fold, once."""

    when = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if Stops.when == (Path(runner.work_dir).name, runner.iter):
            Stops.when = None
            raise KeyboardInterrupt


def test_a_stopped_calibration_goes_on(whole, tuned, tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path, "custom_hooks = [*_base_.custom_hooks, dict(type='Stops')]\n")
    argv = [config, tuned[1], '--work-dir', str(tmp_path / 'run')]
    # In the third epoch of the second fold.
    monkeypatch.setattr(Stops, 'when', ('fold_1', 9))
    with pytest.raises(KeyboardInterrupt, match=r'interrupted in fold 2 of 3; .* --resume:\n  .*toy\.py .*--resume'):
        calibrate(argv)
    with pytest.raises(InputError, match='holds a calibration already\n  to go on: --resume'):
        calibrate(argv)
    calibrate([*argv, '--resume'])
    # A finished fold is not run again, nor are the epochs of the other that were saved.
    assert len(list((tmp_path / 'run' / 'pcv' / 'fold_0').rglob('*.log'))) == 1
    logs = [log.read_text() for log in (tmp_path / 'run' / 'pcv' / 'fold_1').rglob('*.log')]
    assert [any(f'resumed epoch: {epoch}' in log for log in logs) for epoch in (1, 2)] == [False, True]
    assert found(tmp_path / 'run') == found(whole[0])
    capsys.readouterr()
    # When all is done, a resume trains nothing.
    monkeypatch.setattr(folds, '_train', None)
    calibrate([*argv, '--resume', '--no-test'])
    assert 'PCV: gamma' in capsys.readouterr().err
    with pytest.raises(InputError, match=r'is another one\n  seed: there 0, here 1'):
        calibrate([*argv, '--resume', '--seed', '1'])


@pytest.mark.parametrize(('having', 'said'), [(1, 'the mean of 1 of 3 folds'), (0, 'no fold has a gamma')])
def test_folds_without_a_gamma(having, said, tuned, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(folds, '_train', lambda *args: (torch.zeros(0), torch.zeros(0)))
    best = folds.BestGamma(2.5, 60.0, 50.0, 40.0)
    monkeypatch.setattr(folds, 'pcv_fold', lambda *args: calls.append(1) or (best if len(calls) <= having else None))
    calibrate([*tuned, '--work-dir', str(tmp_path / 'run'), '--no-test'])
    text = capsys.readouterr().err
    assert said in text
    assert text.count('no gamma gives the pseudo-absent classes the accuracy of the pre-trained model') == 3 - having
    assert found(tmp_path / 'run')['gammas'].get('PCV') == (2.5 if having else None)
    assert (tmp_path / 'run' / 'calibrated_pcv.pth').is_file() == bool(having)
    assert (tmp_path / 'run' / 'calibrated_alg.pth').is_file()


# ---------------------------------------------------------------- methods and what checkpoints hold

TUNED = """
model.update(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='LoRA', targets=['fc'], rank=2, rows='all'))
"""
OLOR = """
optim_wrapper.update(constructor='olor_mm.OLOROptimWrapperConstructor', rollback=dict(max_level=0.1))
"""
AVERAGED = "custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook', momentum=0.3)]\n"
LEFT_OUT = """
model.update(type='olor_mm.Tuned', of='ImageClassifier', method='Linear')
custom_hooks = [*_base_.custom_hooks, dict(type='olor_mm.SaveTrainedHook')]
model['init_cfg'] = dict(type='Pretrained', checkpoint=load_from)
load_from = None
"""


@pytest.mark.parametrize('extra', [TUNED, OLOR, AVERAGED, LEFT_OUT], ids=['LoRA', 'OLOR', 'EMAHook', 'SaveTrainedHook'])
def test_methods(extra, tmp_path):
    config, checkpoint = fine_tune(tmp_path, f'{extra}\ntrain_cfg.update(max_epochs=3)\n')
    calibrate([config, checkpoint, '--work-dir', str(tmp_path / 'run'), '--folds', '1'])
    table = found(tmp_path / 'run')['table']
    rows = {row['name'].split(', ')[-1]: row['accuracies']['Y/Y'] for row in table}
    # Also where the checkpoint lacks what was frozen, and the pre-trained weights are filled in.
    assert rows['pre-trained'] != rows['fine-tuned']
    for name, file in (('fine-tuned', checkpoint), ('ALG', str(tmp_path / 'run' / 'calibrated_alg.pth'))):
        launch.test(
            [
                config,
                file,
                '--work-dir',
                str(tmp_path / 'test'),
                '--out',
                str(tmp_path / 'out.json'),
                '--out-item',
                'metrics',
            ]
        )
        tested = json.loads((tmp_path / 'out.json').read_text())['accuracy/top1']
        # What the table says is what a test of the checkpoint gives.
        assert tested == pytest.approx(rows[name], abs=1e-4)
    assert rows['fine-tuned'] != rows['ALG']
    if 'method' not in extra:
        # The weights of the fold's checkpoint are what was measured, averaged ones too.
        check_fold(tmp_path / 'run', 0)
    assert (tmp_path / 'run' / 'pcv' / 'fold_0' / 'result.json').is_file()


# ---------------------------------------------------------------- heads


def _stub(head):
    from mmpretrain.registry import MODELS

    return MODELS.build(
        dict(type='ImageClassifier', backbone=dict(type='Flat'), head=dict(in_channels=5, num_classes=6, **head))
    )


@pytest.mark.parametrize(
    'head',
    [
        dict(type='LinearClsHead'),
        dict(type='VisionTransformerClsHead'),
        dict(type='VisionTransformerClsHead', hidden_dim=6),
        dict(type='EfficientFormerClsHead', distillation=True),
        dict(type='LeViTClsHead', distillation=True),
    ],
    ids=['linear', 'vit', 'a hidden layer as wide as the classes', 'mean of two', 'batch norm, mean of two'],
)
def test_the_biases_of_heads(head):
    from olor_mm.tooling.calibration.saving import find_biases, with_gamma

    model = _stub(head).eval()
    for param in model.parameters():
        torch.nn.init.normal_(param)
    if head['type'] == 'EfficientFormerClsHead':
        model.extract_feat = lambda inputs: (inputs,)
    inputs = torch.randn(4, 5) if head['type'] == 'EfficientFormerClsHead' else torch.randn(4, 3, 4, 4)
    biases = find_biases(model, inputs, ABSENT)
    before = model.head(model.extract_feat(inputs))
    state = copy.deepcopy(model.state_dict())
    content = with_gamma({'state_dict': state}, model, biases, ABSENT, 2.0, 'ALG')
    # Trying them out has left nothing behind.
    torch.testing.assert_close(model.state_dict(), state)
    model.load_state_dict(content['state_dict'])
    moved = model.head(model.extract_feat(inputs)) - before
    wanted = torch.zeros(6)
    wanted[ABSENT] = 2
    torch.testing.assert_close(moved, wanted.expand(4, 6), atol=1e-4, rtol=0)


def test_a_bias_that_the_checkpoint_left_out():
    from olor_mm.tooling.calibration.saving import uncalibrated, with_gamma

    model = _stub(dict(type='LinearClsHead'))
    whole = copy.deepcopy(model.state_dict())
    part = {'state_dict': {'backbone.fc.bias': whole['backbone.fc.bias']}}
    content = with_gamma(part, model, {'head.fc.bias': 1.0}, ABSENT, 2.0, 'ALG')
    assert content['state_dict'].keys() == whole.keys()
    assert content['state_dict']['head.fc.bias'][1] == whole['head.fc.bias'][1] + 2
    torch.testing.assert_close(dict(uncalibrated(content, 'x')['state_dict']), dict(whole), rtol=0, atol=0)


def test_progress_is_shown_on_a_terminal(whole, tuned, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr('rich.progress.track', lambda items, *args, **kwargs: shown.append(len(items)) or items)
    calibrate([*tuned, '--work-dir', str(tmp_path / 'run'), '--methods', 'alg'])
    # 80 training images, then 60 of the test and 120 of the class means by two models, 7 in a batch.
    assert shown == [12, 9, 18, 9, 18]
    assert found(tmp_path / 'run')['gammas']['ALG'] == found(whole[0])['gammas']['ALG']


def test_a_head_without_biases():
    from olor_mm.tooling.calibration.saving import find_biases

    with pytest.raises(InputError, match='gamma cannot be put into ArcFaceClsHead'):
        find_biases(_stub(dict(type='ArcFaceClsHead')).eval(), torch.randn(4, 3, 4, 4), ABSENT)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        ("train_dataloader['dataset'] = patches\n", 'of all 6 classes of the head: none was absent'),
        ("model['head']['num_classes'] = 4\n", r'does not fit the model of the config\n(?s:.*)size mismatch'),
        ('test_dataloader = test_cfg = test_evaluator = None\n', 'test_dataloader is not set'),
        ("model.pop('head')\n", 'the model of the config has no head'),
        ("test_dataloader['dataset'] = dict(type='olor_mm.ClassSubset', dataset=test_dataloader['dataset'], "
         'classes=[0, 2])\n', r'0 of 20 images of the test are of absent classes.*\n.* --no-test'),
    ],
)  # fmt: skip
def test_refuses(extra, message, tuned, tmp_path):
    with pytest.raises(InputError, match=message):
        calibrate([write_config(tmp_path, extra), tuned[1], '--work-dir', str(tmp_path / 'run'), '--methods', 'alg'])


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--methods', 'agl'], "invalid choice: 'agl'"),
        (['--folds', '0'], "--folds: '0' is no whole number of 1 or more"),
        (['--hold-out', '1.5'], r"--hold-out: '1\.5' is not in \(0, 1\)"),
        (['--gamma', 'nan'], "--gamma: 'nan' is no finite number"),
        (['--gamma', 'big'], '--gamma: invalid'),
        (['--seed', '-1'], '--seed'),
    ],
)
def test_refuses_options(argv, message, tuned, capsys):
    with pytest.raises(SystemExit):
        calibrate([*tuned, *argv])
    import re

    assert re.search(message, capsys.readouterr().err)


def test_refuses_files(tuned, tmp_path):
    with pytest.raises(InputError, match='the checkpoint to calibrate is missing'):
        calibrate([tuned[0], str(tmp_path / 'no.pth')])
    torch.save({'meta': {}}, tmp_path / 'empty.pth')
    with pytest.raises(InputError, match='it holds no weights by name'):
        calibrate([tuned[0], str(tmp_path / 'empty.pth'), '--work-dir', str(tmp_path / 'run')])


# ---------------------------------------------------------------- several processes


@pytest.mark.slow  # two processes import mmpretrain
def test_two_processes(whole, tuned, tmp_path):
    ranks = on_ranks(2, on_rank, [*tuned, '--work-dir', str(tmp_path / 'run'), '--folds', '1'])
    (gammas, fold, state, reads), (other, other_fold, other_state, other_reads) = ranks
    assert gammas == other
    assert fold == other_fold
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())
    # One process reads other batches in the folds; the fine-tuned model says the same.
    assert gammas['ALG'] == pytest.approx(found(whole[0])['gammas']['ALG'], rel=1e-6)
    table, alone = ({row['name']: row for row in found(root)['table']} for root in (tmp_path / 'run', whole[0]))
    for name in ('pre-trained', 'fine-tuned', 'fine-tuned, ALG'):
        assert table[name]['accuracies'] == pytest.approx(alone[name]['accuracies'])
        assert table[name]['ncm'] == pytest.approx(alone[name]['ncm'])
    # Each image of the test once by each of the two models, by one rank or the other.
    tested = [place for split, place in [*reads, *other_reads] if split == 'test']
    assert sorted(tested) == sorted(2 * [*range(6 * TEST)])


def test_a_head_at_random_is_told(capsys):
    labels = torch.arange(40) % 20
    folds._warn_of_random_head(torch.randn(40, 20).scatter(1, (labels[:, None] + 1) % 20, 9.0), labels)
    assert 'right in 0.00% of the training images held out, of 20 classes' in capsys.readouterr().err
    folds._warn_of_random_head(torch.randn(40, 20).scatter(1, labels[:, None], 9.0), labels)
    assert not capsys.readouterr().err
