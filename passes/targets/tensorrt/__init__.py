"""The target TensorRT: the graph for Torch-TensorRT, and the calls that compile it.

`prepare` makes the graph, `compile_tensorrt` and `write_tensorrt` hand it over. Where a program
is to run jetvit's own kernels inside of an engine, `plugins=True` leaves them in as plugins, and `register` tells
TensorRT of them.
"""

from jetvit.passes.targets.tensorrt.compiler import compile_tensorrt, register, require_tensorrt, write_tensorrt
from jetvit.passes.targets.tensorrt.prepare import LowerOperators, lower, prepare

__all__ = [
    "LowerOperators",
    "compile_tensorrt",
    "lower",
    "prepare",
    "register",
    "require_tensorrt",
    "write_tensorrt",
]
