"""Reads the figures of the demo from what the runs left behind."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch

from olor_mm.engine import load_from_local

#: Name of a figure here -> the metric's name in MMEngine's logs.
METRICS = {
    'box_A': 'A/coco/bbox_mAP',
    'mask_A': 'A/coco/segm_mAP',
    'box_B': 'B/coco/bbox_mAP',
    'mask_B': 'B/coco/segm_mAP',
}


def table_of(metrics: dict[str, float]) -> dict[str, float]:
    """The four APs of one test, from the file that tools/test.py wrote; COCO's -1 (nothing to find) stays -1."""
    return {name: float(metrics[key]) for name, key in METRICS.items()}


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text())


def machine() -> dict[str, str]:
    """What the seconds depend on."""
    return {
        'machine': f'{platform.machine()}, {os.cpu_count()} CPU cores, one thread used',
        'versions': f'Python {platform.python_version()}, torch {torch.__version__}',
    }


def curve(work_dir: Path) -> list[dict[str, float]]:
    """AP at every validation of a run, in order of iterations; a run that was resumed counts as one."""
    points = {}
    for row in _scalars(work_dir):
        if METRICS['box_A'] in row:
            points[int(row['step'])] = {'iteration': int(row['step']), **table_of(row)}
    return [points[step] for step in sorted(points)]


def seconds_per_iteration(work_dir: Path) -> float:
    """Median over the logged intervals: the mean would hold what else the machine did for a while."""
    times = [row['time'] for row in _scalars(work_dir) if 'loss' in row and 'time' in row]
    # The first interval has the warm-up of the memory allocator and of the data workers.
    return median(times[1:] or times)


def discrepancy(checkpoint: Path, reference: Path) -> dict[str, float]:
    """``||theta - theta_0|| / ||theta_0||`` between two checkpoints: of the whole detector, and of its backbone."""
    theta, theta_0 = (load_from_local(str(file), map_location='cpu')['state_dict'] for file in (checkpoint, reference))
    return {
        'detector': _relative_distance(theta, theta_0, ''),
        'backbone': _relative_distance(theta, theta_0, 'backbone.'),
    }


def _relative_distance(theta: dict[str, torch.Tensor], theta_0: dict[str, torch.Tensor], prefix: str) -> float:
    names = [name for name in theta_0 if name.startswith(prefix) and theta_0[name].is_floating_point()]
    distance = sum(float((theta[name].double() - theta_0[name].double()).square().sum()) for name in names)
    norm = sum(float(theta_0[name].double().square().sum()) for name in names)
    return (distance / norm) ** 0.5


def _scalars(work_dir: Path) -> list[dict]:
    """Every line of every vis_data/scalars.json, oldest run first; a kill can leave half a line, which is skipped."""
    rows = []
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows
