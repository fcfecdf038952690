"""Presets in MMEngine's new style: ``with read_base(): from olor_mm.configs.<name> import *``."""
