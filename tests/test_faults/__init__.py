"""A fast part of benchmarks/faults.py, and what docs/faults.md quotes of its report."""
