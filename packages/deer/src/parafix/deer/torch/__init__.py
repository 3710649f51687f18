"""parafix-deer for PyTorch: recurrences in parallel over time."""

from ._auto import Choice as Choice, choose as choose
from ._deer import DEER as DEER
from ._scan import scan as scan


__all__ = ["DEER", "Choice", "choose", "scan"]
