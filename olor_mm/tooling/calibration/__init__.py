"""tools/calibrate.py: gamma for the classes that were absent from fine-tuning."""

from .command import calibrate

__all__ = ['calibrate']
