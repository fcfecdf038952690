"""DiscrepancyHook: the distance from a file's weights in the log of each validation."""

import json

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from olor_mm.engine import DiscrepancyHook
from tests.test_engine._toy import ToyModel, make_runner, toy_config, weights


@METRICS.register_module(force=True)
class Nothing(BaseMetric):
    """A validation's metric."""

    default_prefix = ''

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'nothing': 0.0}


def config(folder, anchor):
    loader = toy_config(folder).train_dataloader
    validation = dict(val_dataloader=loader, val_evaluator=dict(type='Nothing'), val_cfg=dict())
    hook = dict(type='olor_mm.DiscrepancyHook', anchor=str(anchor))
    return toy_config(folder, train_cfg=dict(max_epochs=2, val_interval=1), custom_hooks=[hook], **validation)


def test_it_is_logged_at_each_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyModel, 'val_step', lambda self, data: [dict()], raising=False)
    torch.manual_seed(5)
    theta_0 = {name: value for name, value in ToyModel().state_dict().items() if name.startswith('backbone.')}
    # As MMEngine saves it, of the backbone alone: the head has no theta_0.
    torch.save({'meta': {}, 'state_dict': theta_0}, tmp_path / 'theta_0.pth')
    runner = make_runner(config(tmp_path / 'run', tmp_path / 'theta_0.pth'))
    runner.train()
    (file,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = [line['discrepancy'] for line in lines if 'discrepancy' in line]
    theta = weights(runner)
    names = [name for name, _ in runner.model.named_parameters() if name in theta_0]
    offset, length = (
        torch.cat([value.double().flatten() for value in values]).norm()
        for values in ([theta[n] - theta_0[n] for n in names], [theta_0[n] for n in names])
    )
    assert len(found) == 2
    assert found[-1] == pytest.approx(float(offset / length), rel=1e-4)


def test_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r'DiscrepancyHook\.anchor=None must be the file'):
        DiscrepancyHook(None)
    torch.save({'other': torch.ones(2)}, tmp_path / 'other.pth')
    runner = make_runner(config(tmp_path / 'run', tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match='has no parameter of the model under its name'):
        runner.call_hook('before_train')
