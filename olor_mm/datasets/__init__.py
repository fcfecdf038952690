"""Data sets that the toolboxes lack."""
