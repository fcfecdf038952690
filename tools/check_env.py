"""Does this interpreter have what olor_mm's demo, tests or linters need? Says what is missing, exit status 1.

Modules are looked at, not distributions, so that OpenMMLab's own packages and forks of them both pass. Run it with the
interpreter in question: ``python tools/check_env.py --need test``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import sys

PYTHONS = ((3, 10), (3, 11), (3, 12))
RUNTIME = ('torch', 'torchvision', 'cv2', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'ftfy', 'regex')
TESTS = ('pytest', 'hypothesis', 'pytest_timeout', 'timm', 'xdist')
LINT = ('ruff', 'mypy')
NEEDS = {
    'opencv': ('cv2',),
    'mmcv': ('torch', 'mmcv'),
    'core': ('torch', 'torchvision', 'cv2', 'mmengine', *TESTS),
    'demo': RUNTIME,
    'test': RUNTIME + TESTS,
    'lint': LINT,
    'all': RUNTIME + TESTS + LINT,
}
LEAST = {'torch': (2, 1), 'mmengine': (0, 10), 'mmcv': (2, 0)}


def missing_modules(names: tuple[str, ...]) -> list[str]:
    """The modules of ``names`` that cannot be found; nothing is imported, so it takes milliseconds."""
    return [f'{name}: not installed' for name in names if importlib.util.find_spec(name) is None]


def broken_modules(names: tuple[str, ...]) -> list[str]:
    """Those that do not import, with the error's first line, and those that are too old."""
    problems = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # packages raise anything here, and each is a problem to report
            problems.append(f'{name}: import fails with {type(error).__name__}: {_first_line(error)}')
            continue
        found = tuple(int(n) for n in re.findall(r'\d+', getattr(module, '__version__', ''))[:2])
        if name in LEAST and found < LEAST[name]:
            problems.append(f'{name}: {module.__version__} is older than {".".join(map(str, LEAST[name]))}')
    return problems


def broken_ops() -> list[str]:
    """mmcv's compiled operators, really called: a build without them imports well until then."""
    try:
        import torch
        from mmcv.ops import RoIAlign, nms

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
        _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        rois = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
        pooled = RoIAlign(output_size=2, sampling_ratio=2)(torch.ones(1, 1, 8, 8), rois)
    except Exception as error:  # a missing, foreign or half-built extension raises anything
        if 'mmcv._ext' in str(error):
            return [f'mmcv: built without its operators ({_first_line(error)})']
        return [f'mmcv: its operators do not work: {type(error).__name__}: {_first_line(error)}']
    if kept.tolist() != [0, 2] or not torch.equal(pooled, torch.ones(1, 1, 2, 2)):
        return ['mmcv: its operators give wrong results, as when built for another torch']
    return []


def problems_of(need: str) -> list[str]:
    """All that is in the way of ``need``, a key of ``NEEDS``; the cheap questions come first."""
    if sys.version_info[:2] not in PYTHONS:
        known = ', '.join('.'.join(map(str, v)) for v in PYTHONS)
        return [f'Python {sys.version_info[0]}.{sys.version_info[1]}: supported are {known}']
    names = NEEDS[need]
    problems = missing_modules(names)
    if problems:
        return problems
    problems = broken_modules(tuple(n for n in names if n not in TESTS + LINT))
    if not problems and 'mmcv' in names:
        problems = broken_ops()
    return problems


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ['(no message)'])[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--need', choices=sorted(NEEDS), default='all')
    problems = problems_of(parser.parse_args().need)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
