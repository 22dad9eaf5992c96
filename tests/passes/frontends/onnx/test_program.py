"""Reading .onnx files: what is refused and how, names, open sizes, dtypes, and jetvit's own operators."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from jetvit.passes.frontends.onnx import read_onnx
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.errors import InputError
from jetvit.patterns.find import find_sites

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

FLOAT, INT = 1, 7
RNG = np.random.default_rng(0)


def weight(name: str, *shape: int, dtype: Any = np.float32) -> Any:
    return onnx.numpy_helper.from_array((RNG.standard_normal(shape) / 8).astype(dtype), name)


def numbers(name: str, *values: Any, dtype: Any = np.int64, scalar: bool = False) -> Any:
    return onnx.numpy_helper.from_array(np.array(values[0] if scalar else values, dtype=dtype), name)


def node(op: str, inputs: str, outputs: str, name: str = "", domain: str = "", **attributes: Any) -> Any:
    return onnx.helper.make_node(op, inputs.split(), outputs.split(), name=name or None, domain=domain, **attributes)


def save(
    path: Path,
    nodes: list[Any],
    constants: list[Any],
    inputs: dict[str, list[Any]],
    outputs: dict[str, Any],
    opset: int = 18,
    kind: int = FLOAT,
    domains: tuple[str, ...] = (),
    **options: Any,
) -> Path:
    graph = onnx.helper.make_graph(
        nodes, "g",
        [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        constants,
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", opset), *(onnx.helper.make_opsetid(each, 1) for each in domains)]
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=imports), path, **options)
    return path


def linear(path: Path, **options: Any) -> Path:
    """x [batch, 4] → y [batch, 3]"""
    nodes = [
        node("MatMul", "x onnx::MatMul_7", "h", "/head/fc/MatMul"),
        node("Add", "h head.fc.bias", "y", "/head/fc/Add"),
    ]
    constants = [weight("onnx::MatMul_7", 4, 3), weight("head.fc.bias", 3)]
    return save(path, nodes, constants, {"x": ["batch", 4]}, {"y": ["batch", 3]}, **options)


def attention(
    path: Path, named: bool = True, kind: int = FLOAT, dtype: Any = np.float32, tokens: int | None = None
) -> Path:
    """A convolution, and one attention block as the TorchScript exporter writes it; a fixed count if `tokens`."""
    at = (lambda text: f"/blocks/blocks.0/attn/{text}") if named else (lambda text: "")
    own = (lambda text: f"blocks.0.attn.{text}") if named else (lambda text: f"onnx::Add_{len(text)}")
    nodes = [
        node("Conv", "image patch.weight", "map", strides=[8, 8]),
        node("Shape", "map", "batch", start=0, end=1),
        node("Concat", "batch dim rest" if tokens is None else "batch dim fixed", "flat", axis=0),
        node("Reshape", "map flat", "rows"),
        node("Transpose", "rows", "x", perm=[0, 2, 1]),
        node("MatMul", "x onnx::MatMul_1", "projected", at("qkv/MatMul")),
        node("Add", f"{own('qkv.bias')} projected", "qkv", at("qkv/Add")),
        node("Concat", "batch rest three two eight", "heads", axis=0),
        node("Reshape", "qkv heads", "split", at("Reshape")),
        node("Transpose", "split", "turned", at("Transpose"), perm=[2, 0, 3, 1, 4]),
        node("Gather", "turned at0", "q", at("Gather"), axis=0),
        node("Gather", "turned at1", "k", at("Gather_1"), axis=0),
        node("Gather", "turned at2", "v", at("Gather_2"), axis=0),
        node("Transpose", "k", "kt", at("Transpose_1"), perm=[0, 1, 3, 2]),
        node("MatMul", "q kt", "product", at("MatMul")),
        node("Mul", "product scale", "scores", at("Mul")),
        node("Softmax", "scores", "weights", at("Softmax"), axis=-1),
        node("MatMul", "weights v", "mixed", at("MatMul_1")),
        node("Transpose", "mixed", "back", at("Transpose_2"), perm=[0, 2, 1, 3]),
        node("Concat", "batch rest dim", "whole", axis=0),
        node("Reshape", "back whole", "joined", at("Reshape_1")),
        node("MatMul", "joined onnx::MatMul_2", "out", at("proj/MatMul")),
        node("Add", f"out {own('proj.bias')}", "y", at("proj/Add")),
    ]
    constants = [
        weight("patch.weight", 16, 3, 8, 8, dtype=dtype), weight("onnx::MatMul_1", 16, 48, dtype=dtype),
        weight(own("qkv.bias"), 48, dtype=dtype), weight("onnx::MatMul_2", 16, 16, dtype=dtype),
        weight(own("proj.bias"), 16, dtype=dtype), numbers("scale", 0.25, dtype=dtype, scalar=True),
        numbers("dim", 16), numbers("rest", -1), numbers("three", 3), numbers("two", 2), numbers("eight", 8),
        *(numbers(f"at{index}", index, scalar=True) for index in range(3)),
        *([numbers("fixed", tokens)] if tokens is not None else []),
    ]  # fmt: skip
    sizes = {"image": ["batch", 3, "height", "width"]}
    return save(path, nodes, constants, sizes, {"y": ["batch", "tokens", 16]}, kind=kind)


def targets(program: ExportedProgram) -> Counter[str]:
    return Counter(str(each.target) for each in program.graph.nodes if each.op == "call_function")


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as raised:
        read_onnx(path)
    assert raised.value.do
    return raised.value


# Names and sizes --------------------------------------------------------------------------------------------------


def test_a_linear_layer_gets_its_names_back(tmp_path: Path) -> None:
    program = read_onnx(linear(tmp_path / "m.onnx"))
    assert targets(program) == {"aten.linear.default": 1}
    assert program.state_dict.keys() == {"head.fc.weight", "head.fc.bias"}
    assert all(isinstance(tensor, torch.nn.Parameter) for tensor in program.state_dict.values())
    assert program.state_dict["head.fc.weight"].shape == (3, 4)
    assert program.graph_signature.user_inputs == ("x",)
    outputs = program.module()(torch.randn(5, 4))
    assert outputs.keys() == {"y"}
    assert outputs["y"].shape == (5, 3)


@pytest.mark.parametrize("perm", [None, [1, 0], [0, 1]])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_turned_weight_is_one_whose_axes_are_swapped(op: str, perm: list[int] | None, tmp_path: Path) -> None:
    matrix = weight("w", 4, 4)
    nodes = [node("Transpose", "w", "t", **({} if perm is None else {"perm": perm})), node(op, "x t", "y")]
    program = read_onnx(save(tmp_path / "m.onnx", nodes, [matrix], {"x": [2, 4]}, {"y": [2, 4]}))
    x, right = torch.randn(2, 4), torch.from_numpy(onnx.numpy_helper.to_array(matrix).copy())
    assert targets(program)["aten.linear.default"] == 1
    torch.testing.assert_close(program.module()(x)["y"], x @ (right if perm == [0, 1] else right.t()))


@pytest.mark.parametrize(("name", "module"), [
    ("/blocks.0/attn/MatMulScaleFusion//fused/Relu", "blocks.0.attn.MatMulScaleFusion.fused"),
    ("/a..b/./Relu", "a.b"), ("/a@0/b c/Relu", "a_0.b_c"), ("/training/class/Relu", "training_.class_"),
])  # fmt: skip
def test_a_name_that_is_no_path_of_modules_becomes_one(name: str, module: str, tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "h", name), node("Relu", "h", "y", name)]
    program = read_onnx(save(tmp_path / "m.onnx", nodes, [], {"x": [2]}, {"y": [2]}))
    calls = [each for each in program.graph.nodes if each.op == "call_function"]
    assert [list(each.meta["nn_module_stack"].values())[-1][0] for each in calls] == [module] * 2
    assert name in calls[1].meta["stack_trace"]
    assert program.module()(torch.ones(2))["y"].shape == (2,)


@pytest.mark.parametrize("name", ["in", "self", "torch", "None", "x.1", "1"])
def test_an_input_has_any_name(name: str, tmp_path: Path) -> None:
    nodes = [node("MatMul", f"{name} w", "y")]
    program = read_onnx(save(tmp_path / "m.onnx", nodes, [weight("w", 4, 3)], {name: [2, 4]}, {"y": [2, 3]}))
    assert program.graph_module.meta["onnx_input_names"] == [name]
    assert program.module()(torch.ones(2, 4))["y"].shape == (2, 3)


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("forward", "training.weight"), ("a.class", "class")])
def test_a_weight_has_any_name(names: tuple[str, str], tmp_path: Path) -> None:
    first, second = (weight(name, 4, 4) for name in names)
    nodes = [node("MatMul", f"x {names[0]}", "h"), node("MatMul", f"h {names[1]}", "y")]
    program = read_onnx(save(tmp_path / "m.onnx", nodes, [first, second], {"x": [2, 4]}, {"y": [2, 4]}))
    x = torch.randn(2, 4)
    product = x.numpy() @ onnx.numpy_helper.to_array(first) @ onnx.numpy_helper.to_array(second)
    torch.testing.assert_close(program.module()(x)["y"].detach(), torch.from_numpy(product))


def test_a_table_that_was_folded_for_each_reader_is_one(tmp_path: Path) -> None:
    """Tables of RoPE, which q and k are to share; what bears a name of the model stays apart."""
    nodes = [
        node("Mul", "x val_1", "a"),
        node("Mul", "a val_2", "b"),
        node("Mul", "b val_3", "c"),
        node("Mul", "c layer.one", "d"),
        node("Mul", "d layer.two", "y"),
    ]
    table = np.arange(8, dtype=np.float32).reshape(2, 4)
    names = ("val_1", "val_2", "layer.one", "layer.two")
    constants = [onnx.numpy_helper.from_array(table, name) for name in names]
    constants.append(onnx.numpy_helper.from_array(table + 1, "val_3"))
    file = save(tmp_path / "m.onnx", nodes, constants, {"x": [2, 4]}, {"y": [2, 4]})
    program = read_onnx(file)
    assert sorted(program.state_dict) == ["constants.val_1", "constants.val_3", "layer.one", "layer.two"]
    expected = torch.from_numpy(table**4 * (table + 1))
    assert torch.equal(program.module()(torch.ones(2, 4))["y"], expected)


def test_a_graph_may_have_no_nodes(tmp_path: Path) -> None:
    program = read_onnx(save(tmp_path / "m.onnx", [], [], {"x": [2]}, {"x": [2]}))
    assert program.module()(torch.ones(2))["x"].tolist() == [1, 1]


def test_a_constant_may_be_an_output(tmp_path: Path) -> None:
    constant = node("Constant", "", "y", value=weight("w", 2, 3))
    program = read_onnx(save(tmp_path / "m.onnx", [constant], [], {"x": [2]}, {"y": [2, 3]}))
    expected = onnx.numpy_helper.to_array(constant.attribute[0].t)
    np.testing.assert_array_equal(program.module()(torch.ones(2))["y"].detach(), expected)


def test_an_output_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Relu", "x", "y")], [], {"x": [2]}, {"y": [2]})
    model = onnx.load(path)
    model.graph.output.append(model.graph.output[0])
    onnx.save(model, path)
    assert refused(path).why.endswith(": y")


def test_an_output_may_have_no_shape(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", size_threshold=0)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    assert read_onnx(path).module()(torch.ones(2, 4))["y"].shape == (2, 3)
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    assert read_onnx(path).module()(torch.ones(2, 4))["y"].shape == (2, 3)
    model = onnx.load(path)
    model.graph.node[0].input.append("nobody")
    onnx.save(model, path)
    assert "no valid ONNX model" in refused(path).what
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    assert "'x' has none" in refused(path).why


@pytest.mark.parametrize("shape", [["b", "h", "w", 3], ["b", 64, "w", 1], ["b", 3, "h", "w"], ["b", "c", "h", "w"]])
def test_channels_come_second_or_last(shape: list[Any], tmp_path: Path) -> None:
    last = shape[-1] in (1, 3)
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
             node("Conv", "t w", "y", strides=[8, 8])]  # fmt: skip
    constants = [weight("w", 4, shape[-1] if last else 3, 8, 8)]
    program = read_onnx(save(tmp_path / "m.onnx", nodes, constants, {"x": shape}, {"y": ["b", 4, "r", "s"]}))
    sizes = [{"b": 3, "c": 3, "h": 40, "w": 48}.get(size, size) for size in shape]
    assert program.module()(torch.ones(sizes))["y"].shape == (3, 4, 8 if 64 in shape else 5, 6)


def test_a_scale_that_no_formula_rounds_fixes_the_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [node("Resize", "x none scales", "y", mode="linear")]
    for factor, is_open in ((5 / 6, False), (1.5, True)):
        constants = [numbers("none", dtype=np.float32), numbers("scales", 1, 1, factor, 1, dtype=np.float32)]
        path = save(tmp_path / "m.onnx", nodes, constants, {"x": ["b", 3, "h", "w"]}, {"y": ["b", 3, "r", "w"]})
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            program = read_onnx(path)
        assert ("axis 2 (h) at 224" in caplog.text) is not is_open
        height = 47 if is_open else 224
        assert program.module()(torch.ones(3, 3, height, 50))["y"].shape == (3, 3, int(height * factor), 50)


def test_an_attention_is_found_by_its_name(tmp_path: Path) -> None:
    program = read_onnx(attention(tmp_path / "m.onnx"))
    (site,) = find_sites(ExportedGraph(program))
    assert (site.name, site.num_heads, site.head_dim, site.scale) == ("blocks.0.attn", 2, 8, 0.25)
    assert site.projections.packed.weight == "blocks.0.attn.qkv.weight"
    assert site.projections.out.bias == "blocks.0.attn.proj.bias"
    assert site.source == "m.onnx:18 in MatMul: /blocks/blocks.0/attn/MatMul_1"
    ((image,), _) = program.example_inputs
    assert image.shape == (2, 3, 224, 336)
    assert program.module()(torch.randn(3, 3, 32, 40))["y"].shape == (3, 20, 16)


def test_an_attention_without_names_is_called_by_its_position(tmp_path: Path) -> None:
    (site,) = find_sites(ExportedGraph(read_onnx(attention(tmp_path / "m.onnx", named=False))))
    assert site.name == "layers.0.attn"
    assert site.projections.packed is not None


def test_an_attention_is_found_whose_axes_an_optimizer_has_moved(tmp_path: Path) -> None:
    """Of a batch of one: k loses its axis of three before it is turned, q and v after."""
    path = attention(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    index = next(index for index, each in enumerate(model.graph.node) if each.output[0] == "turned")
    rest = [each for each in model.graph.node[index:] if each.output[0] not in ("turned", "q", "k", "v", "kt")]
    del model.graph.node[index:]
    model.graph.initializer.extend([numbers("ones", 1, 1, 1), numbers("zero", 0), numbers("two_", 2)])
    model.graph.node.extend([
        node("Split", "split ones", "cut_q cut_k cut_v", axis=2),
        *(node("Transpose", f"cut_{name}", f"turned_{name}", perm=[2, 0, 3, 1, 4]) for name in "qv"),
        *(node("Squeeze", f"turned_{name} zero", name) for name in "qv"),
        node("Squeeze", "cut_k two_", "flat_k"), node("Transpose", "flat_k", "kt", perm=[0, 2, 3, 1]), *rest,
    ])  # fmt: skip
    onnx.save(model, path)
    (site,) = find_sites(ExportedGraph(read_onnx(path)))
    assert (site.name, site.num_heads, site.head_dim) == ("blocks.0.attn", 2, 8)


def test_a_fixed_count_of_tokens_fixes_the_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = attention(tmp_path / "m.onnx", tokens=64)  # 64 by 64 pixels, whatever the file says of its input
    with caplog.at_level(logging.WARNING):
        program = read_onnx(path)
    ((image,), _) = program.example_inputs
    assert image.shape[2:] == (64, 64)
    assert "height" in caplog.text
    assert program.module()(torch.randn(3, 3, 64, 64))["y"].shape == (3, 64, 16)
    with pytest.raises(AssertionError, match=r"Guard failed|Expected"):
        program.module()(torch.randn(3, 3, 32, 32))


def test_half_precision_stays(tmp_path: Path) -> None:
    program = read_onnx(attention(tmp_path / "m.onnx", kind=10, dtype=np.float16))
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.float16}
    assert program.module()(torch.randn(2, 3, 32, 40).half())["y"].dtype is torch.float16


def test_a_program_is_saved_and_loaded(tmp_path: Path) -> None:
    program = read_onnx(attention(tmp_path / "m.onnx"))
    torch.export.save(program, tmp_path / "m.pt2")
    again = torch.export.load(tmp_path / "m.pt2")
    image = torch.randn(2, 3, 48, 32)
    torch.testing.assert_close(again.module()(image), program.module()(image))
    assert [site.name for site in find_sites(ExportedGraph(again))] == ["blocks.0.attn"]


# Idioms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["product", "bracket", "x"])
def test_gelu_is_put_together(kind: str, tmp_path: Path) -> None:
    tail = {
        "product": [node("Mul", "x sum", "a"), node("Mul", "half a", "y")],
        "bracket": [node("Mul", "half sum", "a"), node("Mul", "a x", "y")],
        "x": [node("Mul", "x half", "a"), node("Mul", "a sum", "y")],
    }[kind]
    nodes = [node("Div", "x root", "scaled"), node("Erf", "scaled", "e"), node("Add", "one e", "sum"), *tail]
    constants = [numbers(name, value, dtype=np.float32, scalar=True) for name, value in
                 (("root", 2**0.5), ("one", 1.0), ("half", 0.5))]  # fmt: skip
    program = read_onnx(save(tmp_path / "m.onnx", nodes, constants, {"x": ["n", 8]}, {"y": ["n", 8]}))
    assert targets(program) == {"aten.gelu.default": 1}


def test_another_constant_is_no_gelu(tmp_path: Path) -> None:
    nodes = [node("Div", "x root", "scaled"), node("Erf", "scaled", "e"), node("Add", "e one", "sum"),
             node("Mul", "x sum", "a"), node("Mul", "a half", "y")]  # fmt: skip
    constants = [numbers(name, value, dtype=np.float32, scalar=True) for name, value in
                 (("root", 1.5), ("one", 1.0), ("half", 0.5))]  # fmt: skip
    program = read_onnx(save(tmp_path / "m.onnx", nodes, constants, {"x": ["n", 8]}, {"y": ["n", 8]}))
    assert "aten.gelu.default" not in targets(program)


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norm_is_put_together_over_the_last_axis(axis: int, tmp_path: Path) -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[axis]), node("Sub", "x mean", "d"), node("Pow", "d two", "dd"),
        node("ReduceMean", "dd", "var", axes=[axis]), node("Add", "var eps", "ve"), node("Sqrt", "ve", "std"),
        node("Div", "d std", "n"), node("Mul", "n norm.weight", "s"), node("Add", "s norm.bias", "y"),
    ]  # fmt: skip
    constants = [numbers(name, value, dtype=np.float32, scalar=True) for name, value in (("two", 2.0), ("eps", 1e-6))]
    constants += [weight("norm.weight", 8), weight("norm.bias", 8)]
    path = save(tmp_path / "m.onnx", nodes, constants, {"x": ["n", 8, 8]}, {"y": ["n", 8, 8]}, opset=14)
    program = read_onnx(path)
    assert ("aten.layer_norm.default" in targets(program)) == (axis == -1)
    x = torch.randn(2, 8, 8)
    centred = x - x.mean(axis, keepdim=True)
    normal = centred / (centred.pow(2).mean(axis, keepdim=True) + 1e-6).sqrt()
    state = program.state_dict
    torch.testing.assert_close(program.module()(x)["y"], normal * state["norm.weight"] + state["norm.bias"])


def branches(*conditions: Any) -> tuple[list[Any], list[Any]]:
    def branch(op: str, name: str) -> Any:
        return onnx.helper.make_graph(
            [node(op, "x", name)], name, [], [onnx.helper.make_tensor_value_info(name, FLOAT, None)]
        )

    nodes = [*conditions, node("If", "c", "y", then_branch=branch("Relu", "a"), else_branch=branch("Neg", "b"))]
    return nodes, [numbers("four", 4), numbers("zero", 0.0, dtype=np.float32, scalar=True)]


def test_a_branch_on_sizes_is_taken(tmp_path: Path) -> None:
    nodes, constants = branches(
        node("Shape", "x", "s", start=1, end=2), node("Equal", "s four", "e"), node("Squeeze", "e", "c")
    )
    program = read_onnx(save(tmp_path / "m.onnx", nodes, constants, {"x": ["n", 4]}, {"y": ["n", 4]}))
    assert targets(program) == {"aten.relu.default": 1}


def test_a_branch_on_values_is_refused(tmp_path: Path) -> None:
    nodes, constants = branches(node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m zero", "c"))
    error = refused(save(tmp_path / "m.onnx", nodes, constants, {"x": ["n", 4]}, {"y": ["n", 4]}))
    assert "If" in error.what
    assert "values of the model's input" in error.why


def test_jetvit_operators_are_recognised(tmp_path: Path) -> None:
    sizes = {"grid_h": 4, "grid_w": 4, "extra_before": 1, "window_h": 2, "window_w": 2}
    call = node("window_attention", "q k v", "y", domain="jetvit", scale=0.25, **sizes)
    shape = [2, 17, 2, 8]
    path = save(tmp_path / "m.onnx", [call], [], dict.fromkeys("qkv", shape), {"y": shape}, domains=("jetvit",))
    program = read_onnx(path)
    assert "jetvit.window_attention.default" in targets(program)
    assert len(find_sites(ExportedGraph(program)).rewritten) == 1


# Refusals ---------------------------------------------------------------------------------------------------------


def test_unknown_operators_are_named_all_at_once(tmp_path: Path) -> None:
    nodes = [node("Strange", "x", "a", "first", domain="my.ops"), node("Strange", "a", "b", domain="my.ops"),
             node("RandomNormalLike", "b", "y")]  # fmt: skip
    error = refused(save(tmp_path / "m.onnx", nodes, [], {"x": [2]}, {"y": [2]}, domains=("my.ops",)))
    assert "Strange of the domain my.ops: 2 nodes, such as first" in error.why
    assert "RandomNormalLike of the domain ai.onnx (random numbers): 1 node" in error.why


def test_a_shape_from_values_is_refused(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "i", to=INT), node("Reshape", "z i", "y", "the_node")]
    path = save(tmp_path / "m.onnx", nodes, [], {"x": [2], "z": [4]}, {"y": ["a", "b"]})
    error = refused(path)
    assert "values of the model's input" in error.why
    assert "the_node" in error.where


def test_a_pool_that_runtimes_take_differently_is_refused(tmp_path: Path) -> None:
    """Two releases of ONNX Runtime: one moves the windows, the other one refuses."""
    pool = node("MaxPool", "x", "y", strides=[3, 3], kernel_shape=[2, 2], auto_pad="SAME_UPPER")
    error = refused(save(tmp_path / "m.onnx", [pool], [], {"x": [1, 1, 6, 6]}, {"y": [1, 1, 2, 2]}))
    assert "strides are larger than its windows" in error.why


def test_broken_files_are_refused(tmp_path: Path) -> None:
    whole = linear(tmp_path / "m.onnx").read_bytes()
    assert "no file" in refused(tmp_path / "none.onnx").what
    assert "is a folder" in refused(tmp_path).what
    broken = tmp_path / "broken.onnx"
    for content in (
        b"",
        b"\x00" * 64,
        b"not a model at all",
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-9],
        whole[7:],
    ):
        broken.write_bytes(content)
        refused(broken)


def test_an_archive_of_a_program_is_told_by_its_content(tmp_path: Path) -> None:
    torch.export.save(read_onnx(linear(tmp_path / "m.onnx")), tmp_path / "m.pt2")
    error = refused((tmp_path / "m.pt2").rename(tmp_path / "m2.onnx"))
    assert "zip archive" in error.why
    assert ".pt2" in error.do


def test_a_size_that_no_formula_rounds_is_fixed(tmp_path: Path) -> None:
    """48 · 5/6 is 40 in single precision, and 39.99… in double."""
    nodes = [node("Shape", "x", "size", start=1), node("Cast", "size", "float", to=FLOAT),
             node("Mul", "float factor", "product"), node("Cast", "product", "whole", to=INT),
             node("Shape", "x", "batch", end=1), node("Concat", "batch whole", "shape", axis=0),
             node("ConstantOfShape", "shape", "y")]  # fmt: skip
    for factor, sizes, is_open in ((5 / 6, 48, False), (5 / 6, "n", False), (0.5, "n", True)):
        constants = [numbers("factor", factor, dtype=np.float32)]
        program = read_onnx(save(tmp_path / "m.onnx", nodes, constants, {"x": ["b", sizes]}, {"y": ["b", "m"]}))
        ((example,), _) = program.example_inputs
        size = 50 if is_open else example.shape[1]
        expected = int(np.float32(size) * np.float32(factor))
        assert program.module()(torch.ones(3, size))["y"].shape == (3, expected)


@pytest.mark.parametrize("seed", range(20))
def test_changed_bytes_never_end_in_another_error(seed: int, tmp_path: Path) -> None:
    content = bytearray(linear(tmp_path / "m.onnx").read_bytes())
    generator = np.random.default_rng(seed)
    for place in generator.integers(0, len(content), 4):
        content[place] = generator.integers(0, 256)
    (tmp_path / "m.onnx").write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        read_onnx(tmp_path / "m.onnx")


def test_unknown_versions_are_refused(tmp_path: Path) -> None:
    model = onnx.load(linear(tmp_path / "m.onnx"))
    model.ir_version = 99
    (tmp_path / "ir.onnx").write_bytes(model.SerializeToString())
    assert "IR version 99" in refused(tmp_path / "ir.onnx").why
    model.ir_version = 10
    for version in (5, 99):
        model.opset_import[0].version = version
        (tmp_path / "opset.onnx").write_bytes(model.SerializeToString())
        assert f"opset {version}" in refused(tmp_path / "opset.onnx").why


# External data ----------------------------------------------------------------------------------------------------


def external(path: Path) -> Path:
    return linear(path, save_as_external_data=True, location="data.bin", size_threshold=0)


def moved(path: Path, location: str) -> Path:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_are_read(tmp_path: Path) -> None:
    program = read_onnx(external(tmp_path / "m.onnx"))
    assert program.state_dict["head.fc.weight"].shape == (3, 4)
    assert program.state_dict["head.fc.weight"].abs().sum() > 0


def test_external_data_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder / "m.onnx")
    (folder / "data.bin").rename(tmp_path / "data.bin")
    (folder / "link.bin").symlink_to(tmp_path / "data.bin")
    for location in ("../data.bin", str(tmp_path / "data.bin"), "link.bin", "sub/../../data.bin"):
        refusal = refused(moved(path, location))
        assert "outside its folder" in refusal.what
        assert ("is a link to" in (refusal.why or "")) == (location == "link.bin")
    assert "missing" in refused(moved(path, "data.bin")).what


def test_external_data_of_another_size_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx")
    data = (tmp_path / "data.bin").read_bytes()
    (tmp_path / "data.bin").write_bytes(data[:20])
    assert "cut off" in refused(path).what
    (tmp_path / "data.bin").write_bytes(data)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = "8"
    path.write_bytes(model.SerializeToString())
    assert "cut off" in refused(path).what
