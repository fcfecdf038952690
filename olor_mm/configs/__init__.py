"""Presets in MMEngine's new style: ``with read_base(): from olor_mm.configs.<name> import *``.

A preset is named as its config without ``olor_``: MIM looks for a config by its file name in the whole package, and
refuses one that it finds twice.
"""
