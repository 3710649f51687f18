from .abstract import AbstractScan as AbstractScan
from .associative import AssociativeScan as AssociativeScan
from .blocked import BlockedScan as BlockedScan
from .sequential import SequentialScan as SequentialScan
