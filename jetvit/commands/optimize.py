"""Write the rewritten model as a .pt2 or .onnx file."""

from __future__ import annotations

import argparse

from jetvit.commands.options import add_model_options
from jetvit.commands.outputs import add_force_option
from jetvit.commands.rewriting import RewriteRequest, add_rewrite_options, rewrite_and_write
from jetvit.exporting import ExportJob
from jetvit.patterns.errors import InputError

DESCRIPTION = """\
Rewrite a model by a plan and save the result. Without a plan only exact rewrites are made: the results stay the same up
to rounding. Outputs that are dataclasses (as HuggingFace models return) become dicts in the file. The file takes images
of one size, unless --dynamic leaves it open; a .pt2 file that is rewritten keeps its sizes as they are.
`jetvit export` writes other kinds of files, and has their options."""
EPILOG = """\
examples:
  jetvit optimize hf:dinov3-base --size 704x960 --plan plan/ -o fast.pt2
  jetvit optimize hf:dinov3-base --dynamic --plan plan/ -o fast.pt2
  jetvit optimize exported.pt2 --plan plan/ -o fast.pt2
  jetvit optimize exported.onnx --plan plan/ -o fast.onnx
  jetvit optimize hf:dinov3-base --size 704x960 --plan plan/ -o fast.onnx

use the file:
  import jetvit
  model = jetvit.load("fast.pt2")       # or "fast.onnx"; checks its inputs, takes and returns torch tensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit optimize`."""
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the .pt2 or .onnx file to write")
    add_force_option(parser)
    add_rewrite_options(parser)
    parser.add_argument(
        "--functions",
        action="store_true",
        help=".onnx: keep jetvit's operators as model-local functions, which OpenVINO does not load (default: inlined)",
    )
    add_model_options(parser, dynamic=True)


def run(args: argparse.Namespace) -> None:
    """Write the file and print what was done."""
    if not args.out.endswith((".pt2", ".onnx")):
        raise InputError(
            f"cannot write {args.out}",
            why="the file written is a program of torch.export or an ONNX model",
            do="name a file that ends in .pt2 or .onnx; see `jetvit export` for other kinds",
        )
    target = "onnx" if args.out.endswith(".onnx") else "pt2"
    job = ExportJob.parse(target, args.out, functions=args.functions, spelling={"functions": "--functions"})
    for line in rewrite_and_write(RewriteRequest.of(args), job):
        print(line)
