import pathlib
import sys


# The harness is no installed package: `python -m benchmarks` finds it from the root.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
