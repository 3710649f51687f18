"""The experiments of the papers, at a size that one machine can run.

Each folder is one: `python -m experiments.deer_speed --help`.
"""
