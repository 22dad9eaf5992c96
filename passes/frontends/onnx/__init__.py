"""ONNX files in: `read_onnx` makes an ExportedProgram of one, in the dialect that the matcher reads.

A second matcher for ONNX graphs would find other sites than the first one, sooner or later. Here the file is brought to
the first one: rules of onnxscript's rewriter put together what exporters took apart, the rest is imported operator by
operator, and every pass, plan and command works on it as on any program. The price is that a file with an operator that
is not known here is refused as a whole, and that what is written is a new file.

reading     the file, checked before it is trusted
normalizing what exporters take apart, put together again
scopes      modules of the original model; weights: its parameters, under their names
values      sizes and numbers that never become tensors; call, ops_*: the operators
interpreter the graph as a module; program: that module traced
"""

from jetvit.passes.frontends.onnx.program import read_onnx

__all__ = ["read_onnx"]
