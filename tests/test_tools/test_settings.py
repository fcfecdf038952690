"""The options of train.py and test.py, as they change a config."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from olor_mm.tooling import InputError, evaluation, settings
from olor_mm.tooling.distributed import require_accelerator
from olor_mm.tooling.options import test_parser as make_test_parser
from olor_mm.tooling.options import train_parser


def _load(file: Path, *options: str) -> Config:
    return settings.load_config(train_parser().parse_args([str(file), *options]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / 'some config.py'
    path.write_text("a = dict(b=1, c=[1, 2])\noptim_wrapper = dict(type='OptimWrapper')\n")
    return path


def test_options_override_the_config(file: Path) -> None:
    cfg = _load(file, '--cfg-options', 'a.b=2', 'a.c=[1,5]', 'optim_wrapper.rollback.max_level=0.01', 'new.x=1')
    assert (cfg.a.b, cfg.a.c, cfg.optim_wrapper.rollback.max_level, cfg.new.x) == (2, [1, 5], 0.01, 1)


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        ('/my data/coco 2017', '/my data/coco 2017'),
        ("'/my data'", '/my data'),
        ('[1, 2]', [1, 2]),
        ('1e-2', 0.01),
        ('True', True),
        ('a,b', ['a', 'b']),
        ('x=y z', 'x=y z'),
    ],
)
def test_values_of_options(file: Path, value: str, expected: Any) -> None:
    assert _load(file, '--cfg-options', f'new={value}').new == expected


@pytest.mark.parametrize(
    ('options', 'in_config', 'expected'),
    [
        ([], '', 'work_dirs/some config'),
        ([], "work_dir = 'mine'", 'mine'),
        (['--work-dir', 'w'], "work_dir = 'm'", 'w'),
    ],
)
def test_work_dir(file: Path, options: list[str], in_config: str, expected: str) -> None:
    file.write_text(file.read_text() + in_config)
    assert _load(file, *options).work_dir == expected


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['optim_wraper.rollback.max_level=1'], "did you mean 'optim_wrapper'"),
        (['train_dataloder.batch_size=1'], "did you mean 'train_dataloader'"),
        (['a.c.7=1'], 'does not fit'),
        (['a.c.1=5'], 'give the list as a whole'),
        (['a.b.c=1'], 'does not fit'),
    ],
)
def test_refuses_options(file: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _load(file, '--cfg-options', *options)


@pytest.mark.parametrize('value', ["[dict(type='x',a=1)]", "dict(type='x',a=1)", '[a,b', '[[1,2],[3]'])
def test_unreadable_value_is_a_usage_error(file: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        _load(file, '--cfg-options', 'a.b=1', f'a.c={value}')
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f'cannot read {f"a.c={value}"!r}' in said
    assert 'Traceback' not in said


def test_a_usage_error_is_said_once(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr('olor_mm.tooling.options.time.sleep', waited.append)
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(SystemExit) as stopped:
        _load(file, '--nosuch')
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ''
    assert len(waited) == 1


def test_pair_without_value_is_a_usage_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        _load(file, '--cfg-options', 'a.b')
    assert stopped.value.code == 2
    assert "got 'a.b'" in capsys.readouterr().err


@pytest.mark.parametrize('before', ['OptimWrapper', 'OLOROptimWrapper', 'olor_mm.OLOROptimWrapper', None])
def test_amp_changes_the_type_and_keeps_olor(before: str | None) -> None:
    wrapper = dict(constructor='olor_mm.OLOROptimWrapperConstructor', rollback=dict(max_level=0.01))
    cfg = Config(dict(optim_wrapper=dict(wrapper, **({} if before is None else dict(type=before)))))
    settings.apply_amp(cfg)
    assert cfg.optim_wrapper.to_dict() == dict(wrapper, type='AmpOptimWrapper', loss_scale='dynamic')


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'olor_mm.AmpOLOROptimWrapper'])
def test_amp_leaves_amp_alone(kind: str) -> None:
    cfg = Config(dict(optim_wrapper=dict(type=kind, loss_scale=512.0)))
    settings.apply_amp(cfg)
    assert cfg.optim_wrapper.to_dict() == dict(type=kind, loss_scale=512.0)


@pytest.mark.parametrize('kind', ['ApexOptimWrapper', 'my.OptimWrapperWithMore'])
def test_amp_refuses_other_wrappers(kind: str) -> None:
    with pytest.raises(InputError, match='--amp'):
        settings.apply_amp(Config(dict(optim_wrapper=dict(type=kind))))


@pytest.mark.parametrize(
    ('device', 'kind', 'fine'),
    [
        ('cpu', 'AmpOptimWrapper', False),
        ('mps', 'mmengine.AmpOptimWrapper', False),
        ('cuda', 'AmpOptimWrapper', True),
        ('cpu', 'OptimWrapper', True),
    ],
)
def test_amp_needs_an_accelerator(monkeypatch: pytest.MonkeyPatch, device: str, kind: str, fine: bool) -> None:
    monkeypatch.setattr('olor_mm.tooling.distributed.get_device', lambda: device)
    cfg = Config(dict(optim_wrapper=dict(type=kind)))
    if fine:
        require_accelerator(cfg)
    else:
        with pytest.raises(InputError, match=device):
            require_accelerator(cfg)


def test_auto_scale_lr() -> None:
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16)))
    settings.apply_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable is True
    with pytest.raises(InputError, match='base_batch_size'):
        settings.apply_auto_scale_lr(Config(dict(model=1)))


class TestResume:
    """Where --resume starts from."""

    def _cfg(self, tmp_path: Path, **more: Any) -> Config:
        return Config(dict(work_dir=str(tmp_path / 'run'), load_from='start.pth', **more))

    def test_auto_without_checkpoint_keeps_load_from(self, tmp_path: Path) -> None:
        cfg = self._cfg(tmp_path, resume=True)
        (note,) = settings.apply_resume(cfg, 'auto')
        assert (cfg.resume, cfg.load_from) == (False, 'start.pth')
        assert 'start.pth' in note

    @pytest.mark.parametrize('moved', [False, True])
    def test_auto_takes_the_latest(self, tmp_path: Path, moved: bool) -> None:
        cfg = self._cfg(tmp_path)
        run = tmp_path / 'run'
        run.mkdir()
        (run / 'epoch_3.pth').write_bytes(b'weights')
        named = tmp_path / 'older name' / 'epoch_3.pth' if moved else run / 'epoch_3.pth'
        (run / 'last_checkpoint').write_text(str(named))
        settings.apply_resume(cfg, 'auto')
        assert (cfg.resume, cfg.load_from) == (True, str(run / 'epoch_3.pth'))

    def test_auto_with_a_lost_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / 'run').mkdir()
        (tmp_path / 'run' / 'last_checkpoint').write_text('/gone/epoch_3.pth')
        with pytest.raises(InputError, match='/gone/epoch_3'):
            settings.apply_resume(self._cfg(tmp_path), 'auto')

    @pytest.mark.parametrize('content', [b'', b'PK\x03\x04 the beginning of an archive'])
    def test_a_file_that_was_cut_off(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / 'x.pth').write_bytes(content)
        with pytest.raises(InputError, match=r'damaged: (its end|it is empty)'):
            settings.apply_resume(self._cfg(tmp_path), str(tmp_path / 'x.pth'))

    def test_a_path(self, tmp_path: Path) -> None:
        (tmp_path / 'x.pth').write_bytes(b'weights')
        cfg = self._cfg(tmp_path)
        settings.apply_resume(cfg, str(tmp_path / 'x.pth'))
        assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'x.pth'))
        with pytest.raises(InputError, match='/y'):
            settings.apply_resume(cfg, str(tmp_path / 'y.pth'))


@pytest.mark.parametrize(
    ('scope', 'options', 'expected'),
    [
        ('mmpretrain', [], dict(pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate'))),
        (
            'mmpretrain',
            ['--no-pin-memory', '--no-persistent-workers'],
            dict(pin_memory=False, persistent_workers=False, collate_fn=dict(type='default_collate')),
        ),
        ('mmdet', ['--no-pin-memory'], dict(pin_memory=False)),
        ('mmseg', ['--no-persistent-workers'], dict(persistent_workers=False)),
    ],
)
def test_loaders(scope: str, options: list[str], expected: dict) -> None:
    cfg = Config(dict(default_scope=scope, train_dataloader=dict(num_workers=2), val_dataloader=None))
    settings.apply_loaders(cfg, train_parser().parse_args(['x.py', *options]))
    assert cfg.train_dataloader.to_dict() == dict(num_workers=2, **expected)
    assert cfg.val_dataloader is None


def _args(*options: str) -> argparse.Namespace:
    return make_test_parser().parse_args(['x.py', 'x.pth', *options])


@pytest.mark.parametrize(
    ('scope', 'hook', 'visualizer'),
    [
        ('mmdet', dict(draw=True, test_out_dir='out'), {}),
        ('mmpretrain', dict(enable=True, out_dir='out'), {}),
        ('mmseg', dict(draw=True), dict(save_dir='out')),
    ],
)
def test_show_dir_reaches_each_toolboxs_hook(scope: str, hook: dict, visualizer: dict) -> None:
    cfg = Config(dict(default_scope=scope, default_hooks=dict(visualization=dict(type='V')), visualizer={}))
    evaluation.apply_show(cfg, _args('--show-dir', 'out', '--interval', '3'))
    common = dict(type='V', show=False, interval=3, wait_time=2)
    assert cfg.default_hooks.visualization.to_dict() == {**common, **hook}
    assert cfg.visualizer.to_dict() == visualizer


def test_show_needs_the_hook() -> None:
    evaluation.apply_show(Config(dict(default_hooks={})), _args())
    with pytest.raises(InputError, match='visualization hook'):
        evaluation.apply_show(Config(dict(default_hooks={})), _args('--show'))


@pytest.mark.parametrize(('scope', 'kind'), [('mmdet', 'DumpDetResults'), ('mmseg', 'DumpResults')])
@pytest.mark.parametrize('evaluator', [dict(type='M'), [dict(type='M')]])
def test_out_adds_a_dump(scope: str, kind: str, evaluator: Any) -> None:
    cfg = Config(dict(default_scope=scope, test_evaluator=evaluator))
    evaluation.apply_dump(cfg, 'x.pkl')
    assert [dict(item) for item in cfg.test_evaluator] == [dict(type='M'), dict(type=kind, out_file_path='x.pkl')]
    with pytest.raises(InputError, match='pickle'):
        evaluation.apply_dump(cfg, 'x.json')


def _tta(scope: str, model: Any, **more: Any) -> Config:
    pipeline = [dict(type='Load'), dict(type='Pack')]
    loader = dict(dataset=dict(type='Wrap', dataset=dict(type='X', pipeline=pipeline)))
    return Config(
        dict(
            default_scope=scope,
            model=model,
            test_dataloader=loader,
            test_evaluator=dict(type='M'),
            **more,
        )
    )


@pytest.mark.parametrize(('scope', 'model'), [('mmdet', 'DetTTAModel'), ('mmpretrain', 'AverageClsScoreTTA')])
def test_tta_flips_by_default(scope: str, model: str) -> None:
    cfg = _tta(scope, dict(type='Net'))
    evaluation.apply_tta(cfg)
    assert (cfg.model.type, cfg.model.module.type) == (model, 'Net')
    last = cfg.test_dataloader.dataset.dataset.pipeline[-1]
    assert last.type == 'TestTimeAug'
    assert [flip.prob for flip in last.transforms[0]] == [1.0, 0.0]


def test_tta_of_the_config_comes_first() -> None:
    cfg = _tta('mmseg', dict(type='Net'), tta_model=dict(type='SegTTAModel'), tta_pipeline=[dict(type='Mine')])
    evaluation.apply_tta(cfg)
    assert cfg.model.type == 'SegTTAModel'
    assert cfg.test_dataloader.dataset.dataset.pipeline[0].type == 'Mine'


@pytest.mark.parametrize(
    ('scope', 'model', 'message'),
    [
        ('mmdet', dict(type='Net', roi_head=dict(mask_head=dict(type='FCNMaskHead'))), 'masks'),
        ('mmseg', dict(type='Net'), 'tta_model'),
    ],
)
def test_tta_refuses(scope: str, model: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluation.apply_tta(_tta(scope, model))


def test_a_model_has_the_preprocessor_beside_it_as_in_a_runner() -> None:
    beside = dict(mean=[1.0], std=[2.0])
    cfg = Config(dict(model=dict(type='X'), data_preprocessor=beside))
    assert settings.model_of(cfg) == dict(type='X', data_preprocessor=beside)
    assert 'data_preprocessor' not in cfg.model
    own = dict(type='X', data_preprocessor=dict(mean=[3.0]))
    assert settings.model_of(Config(dict(model=own, data_preprocessor=beside))) == own
