"""The parts of benchmarks/faults.py: a small job, faults, ways to start and to break it, and the scenarios as data."""
