"""tools/slca.py: a whole run against a plain loop, stops and resumes, OLOR inside, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from olor_mm.engine.loading import load_from_local
from olor_mm.rollback.anchor import ANCHOR_KEY
from olor_mm.tooling import InputError
from olor_mm.tooling.errors import explain
from olor_mm.tooling.incremental import closing, incremental
from olor_mm.tooling.incremental.plan import IncrementalSettings

pytest.importorskip('mmpretrain')

from tests.test_tools._incremental import CONFIG, DIM, TASKS, Interrupts, images

OLOR = """
optim_wrapper.update(constructor='olor_mm.OLOROptimWrapperConstructor', rollback=dict(max_level=0.5))
incremental['olor_anchor'] = {!r}
"""


def _plain_text(cfg):
    return '\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items())


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    # Laying out the configs of all tasks would take half of the time.
    monkeypatch.setattr(Config, 'pretty_text', property(_plain_text))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def run(folder, *options, extra=''):
    config = Path(folder, 'toy.py')
    config.write_text(CONFIG + extra)
    incremental([str(config), '--work-dir', str(Path(folder, 'run')), *options])
    return Path(folder, 'run')


def kept(root, task):
    return load_from_local(str(root / f'task_{task}' / 'task.pth'), 'cpu')


# ---------------------------------------------------------------- the reference


class Plain:
    """The whole procedure with plain tensors."""

    def __init__(self, sizes, scaling, seed=11):
        order = np.random.RandomState(4).permutation(6).tolist()
        self.tasks = [order[sum(sizes[:t]) : sum(sizes[: t + 1])] for t in range(len(sizes))]
        self.scaling, self.seed = scaling, seed
        generator = torch.Generator().manual_seed(3)
        self.backbone = [torch.randn(DIM, 48, generator=generator) * 0.2, torch.zeros(DIM)]
        self.heads, self.means, self.covariances, self.accuracies, self.matrix = [], {}, {}, [], []
        for task in range(len(sizes)):
            self.learn(task)
            self.count(task)
            self.test(task, self.align(task) if task else self.heads)

    def data(self, split, classes, flip):
        pixels, labels = images(split, 7 if split == 'train' else 10)
        chosen = np.isin(labels, classes)
        x = torch.from_numpy(pixels[chosen].astype(np.float32)).permute(0, 3, 1, 2)
        x = (x.flip(3) if flip else x).sub(128).div(64)
        return x.flatten(1), torch.from_numpy(labels[chosen])

    def features(self, x):
        return x @ self.backbone[0].T + self.backbone[1]

    @staticmethod
    def sgd(params, rates, velocity, loss, first):
        grads = torch.autograd.grad(loss, params)
        for i, (p, lr) in enumerate(zip(params, rates, strict=True)):
            grad = grads[i] + 5e-4 * p.detach()
            velocity[i] = grad if first else 0.9 * velocity[i] + grad
            params[i] = (p.detach() - lr * velocity[i]).requires_grad_()

    def learn(self, task):
        classes = self.tasks[task]
        x, labels = self.data('train', classes, flip=True)
        params = [*self.backbone, torch.full((len(classes), DIM), 0.02), torch.zeros(len(classes))]
        params = [p.requires_grad_() for p in params]
        velocity, first = [None] * 4, True
        for epoch in range(2):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed + task + epoch))
            lr = 0.05 * 0.1**epoch
            for batch in order.split(4):
                target = torch.tensor([classes.index(int(label)) for label in labels[batch]])
                q = torch.eye(len(classes))[target]
                z = (x[batch] @ params[0].T + params[1]) @ params[2].T + params[3]
                p = z.exp() / z.exp().sum(1, keepdim=True)
                loss = -(q * p.log()).sum(1) - 0.1 * (p.clamp(1e-7, 1) * q.clamp(1e-4, 1).log()).sum(1)
                self.sgd(params, [lr * 0.1, lr * 0.1, lr, lr], velocity, loss.mean(), first)
                first = False
        self.backbone = [p.detach() for p in params[:2]]
        self.heads.append([p.detach() for p in params[2:]])

    def count(self, task):
        for label in self.tasks[task]:
            f = self.features(self.data('train', [label], flip=False)[0]).double().numpy()
            self.means[label] = torch.from_numpy(f.mean(0))
            self.covariances[label] = torch.from_numpy(np.cov(f.T) + 1e-4 * np.eye(DIM))

    def align(self, task):
        params = [p.clone().requires_grad_() for head in self.heads for p in head]
        velocity, first = [None] * len(params), True
        for epoch in range(3):
            state = np.random.SeedSequence([self.seed + task, task, epoch]).generate_state(1)
            generator = torch.Generator().manual_seed(int(state[0]))
            features, targets = [], []
            for t in range(task + 1):
                for label in self.tasks[t]:
                    scale = 0.9 + 0.1 * (t + 1) / (task + 1) if self.scaling == 'mean' else 1
                    noise = torch.randn(16, DIM, dtype=torch.float64, generator=generator)
                    f = scale * self.means[label] + noise @ torch.linalg.cholesky(self.covariances[label]).T
                    if self.scaling == 'sample':
                        s = 0.01 + 0.02 * torch.rand(16, 1, dtype=torch.float64, generator=generator)
                        f = f / (1 + s * (task - t))
                    features.append(f)
                    targets += [len(features) - 1] * 16
            features, targets = torch.cat(features).float(), torch.tensor(targets)
            for batch in torch.randperm(len(features), generator=generator).split(8):
                z = [features[batch] @ params[2 * t].T + params[2 * t + 1] for t in range(task + 1)]
                norm = sum(part.square().sum(1).sqrt() + 1e-7 for part in z) / (task + 1)
                scaled = torch.cat(z, 1) / norm[:, None] / 0.1
                loss = scaled.logsumexp(1) - scaled[torch.arange(len(batch)), targets[batch]]
                lr = 0.01 * (1 + math.cos(math.pi * epoch / 3)) / 2
                self.sgd(params, [lr] * len(params), velocity, loss.mean(), first)
                first = False
        return [[p.detach() for p in params[2 * t : 2 * t + 2]] for t in range(task + 1)]

    def test(self, task, heads):
        seen = [label for labels in self.tasks[: task + 1] for label in labels]
        x, labels = self.data('test', seen, flip=False)
        f = self.features(x)
        factor = 0.02 if self.scaling == 'sample' and task else 0
        z = torch.cat([(1 + factor * (task - t)) * f @ w.T + b for t, (w, b) in enumerate(heads)], 1)
        found = torch.tensor(seen)[z.argmax(1)]
        self.accuracies.append(100 * float((found == labels).double().mean()))
        of = [torch.tensor([int(label) in self.tasks[t] for label in labels]) for t in range(task + 1)]
        self.matrix.append([100 * float((found == labels)[chosen].double().mean()) for chosen in of])
        self.aligned = heads


@pytest.mark.parametrize('scaling', ['mean', 'sample'])
def test_a_run_is_the_plain_loop(scaling, tmp_path, capsys):
    extra = "incremental['alignment']['scaling'] = 'sample'\nmodel['head']['feature_scale'] = 0.02\n"
    root, plain = run(tmp_path, extra=extra if scaling == 'sample' else ''), Plain(TASKS, scaling)
    table = capsys.readouterr().out
    found = json.loads((root / 'results.json').read_text())
    assert [task['accuracy'] for task in found['tasks']] == pytest.approx(plain.accuracies, abs=1e-4)
    assert found['A_last'] == pytest.approx(plain.accuracies[-1], abs=1e-4)
    assert found['A_avg'] == pytest.approx(sum(plain.accuracies) / 3, abs=1e-4)
    for row, wanted in zip(found['matrix'], plain.matrix, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4)
    (zero, _), (first, own), last = plain.matrix[0] + [None], plain.matrix[1], plain.matrix[2]
    assert found['forgetting'] == pytest.approx((max(zero, first) - last[0] + own - last[1]) / 2, abs=1e-4)
    assert found['backward_transfer'] == pytest.approx((last[0] - zero + last[1] - own) / 2, abs=1e-4)
    assert f'A_last {plain.accuracies[-1]:.2f}, A_avg {sum(plain.accuracies) / 3:.2f}' in table
    assert table.endswith((root / 'results.md').read_text())
    assert [task['classes'] for task in found['tasks']] == plain.tasks
    last = kept(root, 2)
    for name, value in zip(('weight', 'bias'), plain.backbone, strict=True):
        torch.testing.assert_close(last['state_dict'][f'backbone.fc.{name}'], value, rtol=1e-4, atol=1e-5)
    final = load_from_local(str(root / 'model.pth'), 'cpu')['state_dict']
    for task in range(3):
        for name, before, after in zip(('weight', 'bias'), plain.heads[task], plain.aligned[task], strict=True):
            key = f'head.heads.{task}.{name}'
            torch.testing.assert_close(last['state_dict'][key], before, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(last['incremental']['aligned'][key], after, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(final[key], after, rtol=1e-3, atol=1e-4)
            assert not torch.equal(before, after)
        statistics = kept(root, task)['incremental']['statistics']
        for row, label in enumerate(plain.tasks[task]):
            torch.testing.assert_close(statistics['means'][row], plain.means[label], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(statistics['covariances'][row], plain.covariances[label], rtol=1e-4, atol=1e-4)
    assert not last['state_dict']['head.aligned']
    assert final['head.aligned']


# ---------------------------------------------------------------- stops and resumes

NOISY = "model['backbone']['drop'] = 0.3\ntrain_dataloader['dataset']['pipeline'][0]['prob'] = 0.5\n"


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, monkeypatch, capsys):
    whole = tmp_path / 'whole'
    whole.mkdir()
    wanted = run(whole, extra=NOISY)
    first_log = len(list((wanted / 'task_0').rglob('*.log')))
    # In the second epoch of task 2, between two checkpoints; then while its heads are aligned.
    monkeypatch.setattr(Interrupts, 'when', (1, 3))
    with pytest.raises(KeyboardInterrupt, match=r'interrupted in task 2 of 3; .* --resume:\n  .*toy\.py .*--resume'):
        run(tmp_path, extra=NOISY)
    assert (tmp_path / 'run' / 'task_1' / 'epoch_1.pth').is_file()
    before = (tmp_path / 'run' / 'task_0' / 'task.pth').stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(closing, 'align', _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, '--resume', extra=NOISY)
    root = run(tmp_path, '--resume', extra=NOISY)
    assert '1 of 3 tasks are finished' in capsys.readouterr().err
    # A finished task is not run again.
    assert (root / 'task_0' / 'task.pth').stat().st_mtime_ns == before
    assert len(list((root / 'task_0').rglob('*.log'))) == first_log
    # Nor are the epochs of the other that were saved.
    logs = [log.read_text() for log in (root / 'task_1').rglob('*.log')]
    assert [any(f'resumed epoch: {epoch}' in log for log in logs) for epoch in (1, 2)] == [True, True]
    assert (root / 'results.json').read_text() == (wanted / 'results.json').read_text()
    for file in ('task_2/task.pth', 'model.pth'):
        one, other = (load_from_local(str(folder / file), 'cpu')['state_dict'] for folder in (root, wanted))
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0)
    # And so is a finished run: only its table is made again.
    count = len(list(root.rglob('*.log')))
    capsys.readouterr()
    run(tmp_path, '--resume', extra=NOISY)
    assert 'A_last' in capsys.readouterr().out
    assert len(list(root.rglob('*.log'))) == count


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    with DefaultScope.overwrite_default_scope('mmpretrain'), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, 'pretty_text', property(_plain_text))
        run(folder)
    return folder


def test_a_run_that_is_there_is_not_overwritten(finished):
    with pytest.raises(InputError, match='holds a class-incremental run already'):
        run(finished)


def test_another_split_is_refused_on_resume(finished):
    for extra in ("incremental['seed'] = 5\n", "incremental['task_sizes'] = [3, 3]\n"):
        with pytest.raises(InputError, match='another split of the classes into tasks'):
            run(finished, '--resume', extra=extra)


def test_missing_statistics_are_refused_on_resume(finished, tmp_path):
    (tmp_path / 'run').symlink_to(finished / 'run')
    root = tmp_path / 'run'
    (root / 'task_2' / 'result.json').rename(root / 'task_2' / 'aside.json')
    file = root / 'task_0' / 'task.pth'
    content = load_from_local(str(file), 'cpu')
    torch.save({**content, 'incremental': {}}, file)
    with pytest.raises(InputError, match='the statistics of task 0 are missing'):
        run(tmp_path, '--resume')
    file.unlink()
    with pytest.raises(InputError, match='task 0 is finished, but its weights and statistics are missing'):
        run(tmp_path, '--resume')
    torch.save(content, file)
    (root / 'task_2' / 'aside.json').rename(root / 'task_2' / 'result.json')
    (root / 'split.json').rename(root / 'aside.json')
    with pytest.raises(InputError, match=r'split\.json is missing'):
        run(tmp_path, '--resume')
    (root / 'aside.json').rename(root / 'split.json')


# ---------------------------------------------------------------- OLOR inside


@pytest.mark.parametrize('anchor', ['task', 'pretrained'])
def test_olor_pulls_back_to_the_task_or_to_the_pretrained_weights(anchor, tmp_path):
    root = run(tmp_path, extra=OLOR.format(anchor) + "incremental['task_sizes'] = [3, 3]\n")
    start = Plain([], 'mean').backbone[0]
    learnt = kept(root, 0)['state_dict']['backbone.fc.weight']
    assert not torch.equal(start, learnt)
    states = load_from_local(str(root / 'task_1' / 'epoch_2.pth'), 'cpu')['optimizer']['state'].values()
    (theta_0,) = [state[ANCHOR_KEY] for state in states if ANCHOR_KEY in state and state[ANCHOR_KEY].dim() == 2]
    torch.testing.assert_close(theta_0, start if anchor == 'pretrained' else learnt, rtol=0, atol=0)
    assert (root / 'start.pth').exists() == (anchor == 'pretrained')


# ---------------------------------------------------------------- one task, other settings later, wrong settings


def test_one_task_is_never_aligned(tmp_path, monkeypatch):
    monkeypatch.setattr(closing, 'align', None)
    root = run(tmp_path, extra='incremental.update(task_sizes=None, num_tasks=1)\n')
    assert json.loads((root / 'results.json').read_text())['tasks'][0]['alignment_loss'] is None


def test_settings_of_later_tasks(tmp_path):
    later = 'incremental.update(task_sizes=[3, 3], later=dict(train_cfg=dict(max_epochs=1)))\n'
    root = run(tmp_path, extra=later)
    assert [sorted(f.name for f in (root / f'task_{t}').glob('epoch*')) for t in (0, 1)] == [
        ['epoch_2.pth'], ['epoch_1.pth'],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        ('incremental = None', 'incremental=None must be a dict'),
        ("incremental['num_task'] = 3", 'incremental.num_task=3 is not an option: did you mean num_tasks'),
        ('incremental.update(task_sizes=None, num_tasks=4)', 'incremental.num_classes=6 cannot be shared out evenly'),
        ('incremental.update(task_sizes=None, num_tasks=7)', 'incremental.num_tasks=7 is more than'),
        ("incremental['alignment'] = dict(tao=1)", 'incremental.alignment.tao=1 is not an option: did you mean tau'),
        ("incremental['ridge'] = 0", 'incremental.ridge=0 must be'),
        ("incremental['olor_anchor'] = 'pretrained'", 'but optim_wrapper has no rollback'),
        ("incremental['olor_anchor'] = 'start'", "incremental.olor_anchor='start' must be 'task' or 'pretrained'"),
        ("incremental['metric'] = 'top1'", "incremental.metric='top1' is not among the metrics"),
        ("model['head'] = dict(type='LinearClsHead')", "model.head.type='LinearClsHead'"),
        ('test_dataloader = None', 'test_dataloader is not set'),
        ("custom_hooks += [dict(type='EMAHook')]", 'EMAHook tests other weights'),
        ("custom_hooks += [dict(type='olor_mm.SaveTrainedHook')]", 'SaveTrainedHook leaves out of checkpoints'),
        ('incremental.update(num_classes=7, task_sizes=[2, 1, 4], seed=None)', r'no image of \[6\]'),
        ("train_dataloader['dataset']['labelled'] = False", 'sample 0 has no gt_label'),
        ("model['head']['in_channels'] = 4", 'model.head.in_channels=4: features'),
    ],
)
def test_wrong_settings(extra, message, tmp_path):
    with pytest.raises((InputError, ValueError), match=message) as caught:
        run(tmp_path, extra=f'{extra}\n')
    # The tool says it without a traceback.
    assert explain(caught.value) is not None


def test_settings_need_their_classes():
    with pytest.raises(ValueError, match=r'incremental\.num_classes is not set'):
        IncrementalSettings.from_cfg({'num_tasks': 2})
