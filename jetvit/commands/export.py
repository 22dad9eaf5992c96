"""Write the rewritten model for another place: compiled code, ONNX, TensorRT."""

from __future__ import annotations

import argparse
import re

from jetvit.commands.options import add_model_options
from jetvit.commands.outputs import add_force_option
from jetvit.commands.rewriting import RewriteRequest, add_rewrite_options, rewrite_and_write
from jetvit.export_targets import TARGETS
from jetvit.exporting import ExportJob

DESCRIPTION = """\
Rewrite a model by a plan and write it as a file for another place. Without a plan only exact rewrites are made: the
results stay the same up to rounding. Outputs that are dataclasses (as HuggingFace models return) become dicts. The file
takes images of one size, unless --dynamic leaves it open; a .pt2 file that is rewritten keeps its sizes as they are.
The file is run on a batch of drawn images, where it can be run here, and takes its place only if its results fit.

targets:
  pt2        a program of torch.export, to be loaded after `import jetvit`, compiled or rewritten again
  aoti       compiled code (AOTInductor): needs torch alone, for this kind of processor or GPU; takes a C++ compiler
  onnx       for any ONNX runtime: pip install 'jetvit[onnx]'
  tensorrt   TensorRT engines for this kind of GPU: pip install 'jetvit[tensorrt]'"""
EPILOG = """\
examples:
  jetvit export hf:dinov3-base --size 704x960 --plan plan/ --target aoti -o fast.pt2
  jetvit export hf:dinov3-base --dynamic --plan plan/ --target aoti --device cuda --dtype bfloat16 -o fast.pt2
  jetvit export hf:dinov3-base --size 704x960 --plan plan/ --target onnx --opset 23 -o fast.onnx
  jetvit export fast.pt2 --target onnx -o fast.onnx

use the file, of any target:
  import jetvit; model = jetvit.load("fast.pt2")      # checks its inputs; takes and returns torch tensors

or without jetvit.load:
  pt2        import jetvit, torch; model = torch.export.load("fast.pt2").module()
  aoti       import torch; model = torch._inductor.aoti_load_package("fast.pt2")
             (it runs code from the file)
  onnx       import onnxruntime; session = onnxruntime.InferenceSession("fast.onnx")
             import openvino; model = openvino.compile_model("fast.onnx")
  tensorrt   import torch_tensorrt; model = torch_tensorrt.load("fast.pt2").module()
             (with --plugins, after jetvit.passes.targets.tensorrt.compiler.register())"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit export`."""
    parser.add_argument("--target", choices=TARGETS, required=True, help="the kind of file")
    parser.add_argument(
        "-o", "--out", metavar="FILE", required=True, help="the file to write; it ends in .onnx for onnx, else in .pt2"
    )
    add_force_option(parser)
    add_rewrite_options(parser)
    parser.add_argument(
        "--opset", type=int, choices=(18, 23), help="onnx: version of the standard operators (default: 18)"
    )
    parser.add_argument(
        "--custom-ops", action="store_true", help="onnx: leave jetvit's operators as they are, without a body"
    )
    parser.add_argument(
        "--functions",
        action="store_true",
        help="onnx: keep jetvit's operators as model-local functions, which OpenVINO does not load (default: inlined)",
    )
    parser.add_argument("--plugins", action="store_true", help="tensorrt: run jetvit's operators as plugins")
    parser.add_argument(
        "--max-shape",
        type=_shape,
        action="append",
        default=[],
        metavar="INPUT=BxCxHxW",
        help="tensorrt with --dynamic: the largest shape of an input; can be repeated",
    )
    add_model_options(parser, dynamic=True)


def run(args: argparse.Namespace) -> None:
    """Write the file and print what was done."""
    job = ExportJob.parse(
        args.target,
        args.out,
        opset=args.opset,
        custom_ops=args.custom_ops,
        functions=args.functions,
        plugins=args.plugins,
        max_shapes=dict(args.max_shape),
        spelling={
            "opset": "--opset",
            "custom_ops": "--custom-ops",
            "functions": "--functions",
            "plugins": "--plugins",
            "max_shapes": "--max-shape",
        },
    )
    for line in rewrite_and_write(RewriteRequest.of(args), job):
        print(line)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, shape = text.partition("=")
    if not re.fullmatch(r"\w+=[1-9]\d*(x[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape: write it like pixel_values=8x3x1024x2048")
    return name, tuple(map(int, shape.split("x")))
