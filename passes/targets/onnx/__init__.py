"""The way out to ONNX: an exported program becomes a file that any runtime reads.

`onnx_model` makes the model, `write_onnx` checks and writes it; `convention` and `inlining` say how the operators stand
in it.
"""

from jetvit.passes.targets.onnx.export import onnx_model
from jetvit.passes.targets.onnx.write import EXTERNAL_ABOVE, write_onnx

__all__ = ["EXTERNAL_ABOVE", "onnx_model", "write_onnx"]
