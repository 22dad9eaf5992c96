"""The program that reads a wheel of Torch-TensorRT, on a small wheel made here."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from benchmarks.targets.converters import FILE, release
from benchmarks.targets.tensorrt_converters import main, read_wheel

CONVERTERS = """
import operator, torch, no_such_module
raise RuntimeError("this is never run")

def picky(node, settings=None): ...
def of(places): ...

@dynamo_tensorrt_converter(torch.ops.aten.add.Tensor, supports_dynamic_shapes=True)
@dynamo_tensorrt_converter(operator.add)
def add(ctx, target, args, kwargs, name): ...

@registry.dynamo_tensorrt_converter(key=torch.ops.aten.split.Tensor, capability_validator=of([1]))
def split(ctx, target, args, kwargs, name): ...

@dynamo_tensorrt_converter(
    torch.ops.aten.index.Tensor,
    capability_validator=lambda node, settings: picky(node, settings) and not of(node),
    supports_dynamic_shapes=True,
    requires_output_allocator=True,
)
@dynamo_tensorrt_converter(torch.ops.aten.index.Tensor, capability_validator=picky)
@enforce_tensor_types({0: (int,)})
def index(ctx, target, args, kwargs, name): ...

for op in (torch.ops.aten.sin.default, torch.ops.aten.cos.default):
    @dynamo_tensorrt_converter(op)
    def wave(ctx, target, args, kwargs, name): ...

for op in [torch.sym_min]:
    dynamo_tensorrt_converter(op, supports_dynamic_shapes=True)(smallest)

if FEATURES.fast:
    try:
        import extra.package
    except ImportError:
        pass
    else:
        @dynamo_tensorrt_converter(torch.ops.extra.op.default)
        def special(ctx, target, args, kwargs, name): ...
else:
    @dynamo_tensorrt_converter(variable)
    def other(ctx, target, args, kwargs, name): ...
"""
GROUPS = """
aten = torch.ops.aten
torch_enabled_decompositions: Set = {aten.addcmul, aten.arange.start}
torch_disabled_decompositions = {aten.linear.default}
"""
DECOMPOSITIONS = """
ATTENTION_DECOMPOSITION_OPS = {aten.scaled_dot_product_attention.default}
replace_inplace_op(aten.add_, aten.add)

@register_torch_trt_decomposition(aten.rsqrt, registry=TABLE)
def one_over_root(x): ...
"""
GENERATOR = """
def generate(schema):
    for arg in schema.arguments:
        if arg.type.isSubtypeOf(torch._C.TensorType.get()):
            pass
        elif arg.type.isSubtypeOf(torch._C.StringType.get()):
            pass
"""
REMOVING = """
def remove_it(gm, settings):
    for node in gm.graph.nodes:
        if node.target == torch.ops.aten.detach.default or node.target == "detach":
            gm.graph.erase_node(node)
"""
FILES = {
    "dynamo/conversion/aten_ops_converters.py": CONVERTERS,
    "dynamo/lowering/_decomposition_groups.py": GROUPS,
    "dynamo/lowering/_decompositions.py": DECOMPOSITIONS,
    "dynamo/lowering/passes/remove_it.py": REMOVING,
    "dynamo/conversion/plugins/_generate_plugin.py": GENERATOR,
    "dynamo/conversion/plugins/_custom_op.py": "def custom_op(op_name, *, fast=True): ...",
    "dynamo/_compiler.py": "def compile(program, inputs=None, *, arg_inputs=None, **kwargs): ...",
    "_compile.py": "def save(module, file_path='', *, output_format='x'): ...",
    "dynamo/_settings.py": "class CompilationSettings:\n    b: int = 1\n    a: int = 2",
    "dynamo/backend/backends.py": "@register_backend(name='tensorrt')\n@register_backend(name='other')\ndef run(): ...",
}


def wheel(folder: Path, without: str = "", version: str = "Version: 9.8.7\n") -> Path:
    path = folder / "torch_tensorrt-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            if name != without:
                archive.writestr(f"torch_tensorrt/{name}", text)
        archive.writestr("torch_tensorrt-9.8.7.dist-info/METADATA", f"Name: torch-tensorrt\n{version}")
    return path


def test_converters(tmp_path: Path) -> None:
    document = read_wheel(wheel(tmp_path))
    keys = ("op", "function", "validator", "dynamic", "output_allocator", "requires")
    assert [tuple(entry[key] for key in keys) for entry in document["converters"]] == [
        ("aten.add.Tensor", "add", None, True, False, None),
        ("aten.cos.default", "wave", None, False, False, None),
        ("aten.index.Tensor", "index", "picky, not of", True, True, None),
        ("aten.index.Tensor", "index", "picky", False, False, None),
        ("aten.sin.default", "wave", None, False, False, None),
        ("aten.split.Tensor", "split", "of([1])", False, False, None),
        ("extra.op.default", "special", None, False, False, "FEATURES.fast and import extra.package"),
        ("operator.add", "add", None, False, False, None),
        ("torch.sym_min", "smallest", None, True, False, None),
    ]
    assert document["unresolved"] == ["variable"]


def test_the_rest(tmp_path: Path) -> None:
    document = read_wheel(wheel(tmp_path))
    assert (document["version"], document["wheel"]) == ("9.8.7", "torch_tensorrt-9.8.7-py3-none-any.whl")
    assert document["decompositions"] == {
        "enabled": ["aten.addcmul", "aten.arange.start"],
        "disabled": ["aten.linear.default"],
        "attention": ["aten.scaled_dot_product_attention.default"],
        "own": [{"op": "aten.add_", "by": "aten.add"}, {"op": "aten.rsqrt", "by": "one_over_root"}],
    }
    assert document["removed"] == ["aten.detach.default"]
    assert document["plugin_types"] == ["TensorType", "StringType"]
    assert document["signatures"]["dynamo.compile"] == {
        "positional": ["program", "inputs"],
        "keyword": ["arg_inputs"],
        "others": True,
    }
    assert document["settings"] == ["a", "b"]
    assert document["backends"] == ["other", "tensorrt"]


def test_it_writes_what_can_be_read_and_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path in (first, second):
        main([str(wheel(tmp_path)), "-o", str(path)])
    assert first.read_bytes() == second.read_bytes()
    assert "9 converters of Torch-TensorRT 9.8.7" in capsys.readouterr().out
    known = release(first)
    assert known.own == {"aten.add_": "aten.add", "aten.rsqrt": "one_over_root"}
    assert len(known.converters["aten.index.Tensor"]) == 2


def test_the_committed_file_is_as_it_would_be_written() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("dynamo/_compiler.py", "no torch_tensorrt/dynamo/_compiler.py: another layout"),
        ("dynamo/_settings.py", "there is no class CompilationSettings"),
    ],
)
def test_another_layout_is_refused(without: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_wheel(wheel(tmp_path, without))


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "torch_tensorrt.whl"
    path.write_text("no zip")
    with pytest.raises(ValueError, match="is no wheel"):
        read_wheel(path)
    with pytest.raises(ValueError, match="no METADATA with a version"):
        read_wheel(wheel(tmp_path, version=""))
