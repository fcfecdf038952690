"""The parts of ``tools/matrix.py``; standard library only."""
