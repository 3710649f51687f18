from .abstract import AbstractScan as AbstractScan
from .associative import AssociativeScan as AssociativeScan
from .blocked import BlockedScan as BlockedScan
from .fused import AbstractFusedScan as AbstractFusedScan
from .sequential import SequentialScan as SequentialScan
from .triton import TritonScan as TritonScan
