"""tools/forgetting.py: what fine-tuned models still know of the pre-training."""

from .command import forgetting

__all__ = ['forgetting']
