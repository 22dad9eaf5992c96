"""ONNX files in: `read_onnx` makes an ExportedProgram of one, in the dialect that the matcher reads.

reading     the file, checked before it is trusted
normalizing what exporters take apart, put together again
scopes      modules of the original model; weights: its parameters, under their names
values      sizes and numbers that never become tensors; call, ops_*: the operators
interpreter the graph as a module; program: that module traced
"""

from jetvit.passes.from_onnx.program import read_onnx

__all__ = ["read_onnx"]
