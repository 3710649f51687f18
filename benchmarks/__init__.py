"""Side-by-side measurements: `python -m benchmarks --help`, and README.md here.

Nothing of this is installed with the packages.
"""
