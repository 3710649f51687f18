import pathlib
import sys


# The experiments are no installed package: `python -m` finds them from the root.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
