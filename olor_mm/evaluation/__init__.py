"""What was kept: figures of forgetting and calibration. Pure functions need torch alone; the METRICS need MMEngine."""

from importlib.util import find_spec as _find_spec

from .ausuc import AUSUCCurve, ausuc, ausuc_curve, margin_curve
from .calibration import BestGamma, alg_gamma, best_gamma, pcv_fold, pcv_gamma
from .continual import a_avg, a_last, backward_transfer, forgetting
from .knn import KNNBank, knn_accuracy
from .ncm import class_means, ncm_accuracy, ncm_scores
from .seen_unseen import Margins, margin_accuracies, seen_unseen_accuracies

__all__ = [
    'AUSUCCurve',
    'BestGamma',
    'KNNBank',
    'Margins',
    'a_avg',
    'a_last',
    'alg_gamma',
    'ausuc',
    'ausuc_curve',
    'backward_transfer',
    'best_gamma',
    'class_means',
    'forgetting',
    'knn_accuracy',
    'margin_accuracies',
    'margin_curve',
    'ncm_accuracy',
    'ncm_scores',
    'pcv_fold',
    'pcv_gamma',
    'seen_unseen_accuracies',
]

if _find_spec('mmengine') is not None:
    from .features import extract_features, extract_logits
    from .group_accuracy import GroupAccuracy
    from .hooks import MetricsHook
    from .metrics import KNNMetric, NCMMetric, SeenUnseenMetric
    from .task_accuracy import TaskAccuracy
    from .upstream import UpstreamHook

    __all__ += [
        'GroupAccuracy',
        'KNNMetric',
        'MetricsHook',
        'NCMMetric',
        'SeenUnseenMetric',
        'TaskAccuracy',
        'UpstreamHook',
        'extract_features',
        'extract_logits',
    ]
