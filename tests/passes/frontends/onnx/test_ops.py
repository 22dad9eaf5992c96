"""One operator at a time, with any attributes and shapes: the imported module gives what ONNX Runtime gives."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, currently_in_test_context, given, settings
from hypothesis import strategies as st

from jetvit.passes.frontends.onnx.interpreter import ImportedModel, check_operators
from jetvit.passes.frontends.onnx.normalizing import normalize
from jetvit.passes.frontends.onnx.reading import read_model
from jetvit.patterns.errors import InputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

LAW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
IR = 10
RNG = np.random.default_rng(0)


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def both(
    name: str,
    inputs: dict[str, np.ndarray | None],
    constants: dict[str, np.ndarray] | None = None,
    outputs: int = 1,
    opset: int = 18,
    domain: str = "",
    **attributes: Any,
) -> list[tuple[np.ndarray, torch.Tensor]]:
    """Each output of one node as ONNX Runtime and as the imported module have it; an input of None is left out.

    Skips what ONNX Runtime itself refuses.
    """
    tensors = {key: value for key, value in {**inputs, **(constants or {})}.items() if value is not None}
    order = [key if value is not None else "" for key, value in {**inputs, **(constants or {})}.items()]
    names = [f"y{index}" for index in range(outputs)]
    attributes = {key: value for key, value in attributes.items() if value is not None}
    node = onnx.helper.make_node(name, order, names, name="the_node", domain=domain, **attributes)
    given_ = [key for key in tensors if key in inputs]
    graph = onnx.helper.make_graph(
        [node], "g",
        [onnx.helper.make_tensor_value_info(key, onnx.helper.np_dtype_to_tensor_dtype(tensors[key].dtype),
                                            tensors[key].shape) for key in given_],
        [onnx.helper.make_value_info(each, onnx.TypeProto()) for each in names],
        [onnx.numpy_helper.from_array(tensors[key], key) for key in tensors if key not in inputs],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", opset)] + ([onnx.helper.make_opsetid(domain, 1)] if domain else [])
    model = onnx.helper.make_model(graph, ir_version=IR, opset_imports=imports)
    try:
        model = onnx.shape_inference.infer_shapes(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        expected = session.run(None, {key: tensors[key] for key in given_})
    except Exception as error:
        if currently_in_test_context():
            assume(False)
        pytest.skip(f"ONNX Runtime: {str(error)[:200]}")
    for info, value in zip(model.graph.output, expected, strict=True):
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, value.shape))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one.onnx"
        onnx.save(model, path)
        read = read_model(path)
        check_operators(read, path.name)
        normalize(read)
        module = ImportedModel(read, path.name)
        result = module(*(torch.from_numpy(tensors[key].copy()) for key in given_))
    return [(value, result[each]) for each, value in zip(names, expected, strict=True)]


def check(pairs: list[tuple[np.ndarray, torch.Tensor]], tolerance: float = 1e-4) -> None:
    for theirs, ours in pairs:
        assert tuple(ours.shape) == theirs.shape
        assert ours.dtype == torch.from_numpy(np.asarray(theirs)).dtype
        torch.testing.assert_close(ours, torch.from_numpy(np.asarray(theirs)), rtol=tolerance, atol=tolerance,
                                   equal_nan=True)  # fmt: skip


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


small = st.integers(1, 5)
shapes = st.lists(small, min_size=1, max_size=4)


@LAW
@given(st.data())
def test_slice(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    bounds = st.sampled_from([-(2**63), -9, -4, -2, -1, 0, 1, 2, 3, 6, 2**31 - 1, 2**63 - 1])
    starts = [data.draw(bounds) for _ in axes]
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in axes]
    # Where a step is negative, ONNX Runtime takes an end of 2³¹ − 1 for "to the first", against the specification.
    ends = [data.draw(bounds.filter(lambda end, step=step: step > 0 or end < 2**31 - 1)) for step in steps]
    signed = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    constants = {"starts": ints(*starts), "ends": ints(*ends), "axes": ints(*signed), "steps": ints(*steps)}
    check(both("Slice", {"x": array(*shape)}, constants))


@LAW
@given(shapes, st.data())
def test_gather(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    picks = data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))
    kind = data.draw(st.sampled_from(["scalar", "vector", "matrix"]))
    index = np.array(picks[0] if kind == "scalar" else picks, dtype=np.int64)
    index = index[None] if kind == "matrix" else index
    if data.draw(st.booleans()):
        check(both("Gather", {"x": array(*shape)}, {"i": index}, axis=axis))
    else:
        check(both("Gather", {"x": array(*shape), "i": index}, axis=axis))


@LAW
@given(st.data())
def test_gather_nd_and_elements(data: st.DataObject) -> None:
    shape = data.draw(st.lists(small, min_size=2, max_size=4))
    depth = data.draw(st.integers(1, len(shape)))
    index = np.stack([RNG.integers(-size, size, (2, 3)) for size in shape[:depth]], axis=-1)
    check(both("GatherND", {"x": array(*shape), "i": index}))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    each = RNG.integers(-shape[axis], shape[axis], shape)
    check(both("GatherElements", {"x": array(*shape), "i": each}, axis=axis))
    check(both("ScatterND", {"x": array(*shape), "i": index[:1, :1], "u": array(1, 1, *shape[depth:])}))


@LAW
@given(st.data())
def test_split(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(small, min_size=1, max_size=4))
    axis = data.draw(st.sampled_from([0, 1, -1, -2]))
    shape = [3, 3]
    shape[axis] = sum(sizes)
    check(both("Split", {"x": array(*shape)}, {"s": ints(*sizes)}, outputs=len(sizes), axis=axis))
    count = data.draw(st.integers(1, shape[axis]))
    if count == 1 or -(-shape[axis] // count) * (count - 1) < shape[axis]:
        check(both("Split", {"x": array(*shape)}, outputs=count, axis=axis, num_outputs=count))


@LAW
@given(st.permutations([2, 3, 4]), st.sampled_from([[0, -1], [-1], [0, 0, -1], [-1, 0], [2, 3, 4], [12, -1]]))
def test_reshape(shape: list[int], asked: list[int]) -> None:
    check(both("Reshape", {"x": array(*shape)}, {"s": ints(*asked)}))


def test_reshape_to_no_entries() -> None:
    check(both("Reshape", {"x": array(0, 3)}, {"s": ints(3, 0)}, allowzero=1))


@LAW
@given(st.data())
def test_pad(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(3, 5), min_size=1, max_size=4))
    mode = data.draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    low = -1 if mode == "constant" else 0
    spatial = data.draw(st.integers(1, min(len(shape), 3)))
    axes = list(range(len(shape) - spatial, len(shape)))
    pads = [data.draw(st.integers(low, 2)) for _ in range(2 * spatial)]
    constants = {"pads": ints(*pads), "value": np.array(1.5, np.float32), "axes": ints(*axes)}
    check(both("Pad", {"x": array(*shape)}, constants, opset=19, mode=mode))


@LAW
@given(shapes, st.data())
def test_reductions(shape: list[int], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
                                      "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"]))  # fmt: skip
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), max_size=len(shape), unique=True) | st.none())
    signed = None if axes is None else [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    options = {"keepdims": data.draw(st.integers(0, 1)), "noop_with_empty_axes": data.draw(st.integers(0, 1))}
    x = np.abs(array(*shape)) + 0.1
    check(both(kind, {"x": x}, {} if signed is None else {"axes": ints(*signed)}, **options))
    if axes:
        check(both(kind, {"x": x}, opset=11, axes=signed, keepdims=options["keepdims"]))


@LAW
@given(st.data())
def test_layer_normalization(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(2, 5), min_size=2, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = shape[axis:]
    bias = array(*sizes) if data.draw(st.booleans()) else None
    inputs = {"x": array(*shape), "w": array(*sizes)} | ({"b": bias} if bias is not None else {})
    check(both("LayerNormalization", inputs, axis=axis, epsilon=1e-3))
    check(both("RMSNormalization", {"x": array(*shape), "w": array(*sizes)}, opset=23, axis=axis, epsilon=1e-3))


@LAW
@given(st.data())
def test_gemm(data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    alpha, beta = data.draw(st.sampled_from([1.0, 0.5])), data.draw(st.sampled_from([1.0, 2.0]))
    x, w = array(*((3, 2) if a else (2, 3))), array(*((4, 3) if b else (3, 4)))
    c = data.draw(st.sampled_from([None, (4,), (1, 4), (2, 1), (2, 4), ()]))
    options = {"transA": a, "transB": b, "alpha": alpha, "beta": beta}
    constants = {"w": w} | ({"c": array(*c)} if c is not None else {})
    check(both("Gemm", {"x": x}, constants, **options))
    check(both("Gemm", {"x": x, **constants}, **options))


@LAW
@given(shapes, st.data())
def test_softmax(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    kind = data.draw(st.sampled_from(["Softmax", "LogSoftmax"]))
    check(both(kind, {"x": array(*shape)}, opset=data.draw(st.sampled_from([11, 13, 18])), axis=axis))


@LAW
@given(st.sampled_from([1, 10, 11, 6, 7, 9, 2, 3]), st.sampled_from([np.float32, np.float16, np.int64, np.bool_]))
def test_cast(to: int, dtype: Any) -> None:
    values = np.array([0, 1, 3, 7, 100] if to == 2 else [-7.9, -1.5, -0.5, 0, 0.5, 1.5, 7.9])
    check(both("Cast", {"x": values.astype(dtype)}, to=to))


@LAW
@given(st.sampled_from([((3, 1), (2, 1, 6)), ((3, 1), (3, 4)), ((1,), (2, 3)), ((2, 1, 3), (1, 5, 1))]))
def test_expand(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    check(both("Expand", {"x": array(*pair[0])}, {"s": ints(*pair[1])}))


@LAW
@given(st.booleans(), st.booleans(), st.sampled_from([np.float32, np.int64]), st.booleans())
def test_clip(has_min: bool, has_max: bool, dtype: Any, constant: bool) -> None:
    x = (3 * array(4, 5)).astype(dtype)
    bounds = {"low": np.array(-1, dtype) if has_min else None, "high": np.array(2, dtype) if has_max else None}
    check(both("Clip", {"x": x, **({} if constant else bounds)}, bounds if constant else {}))  # type: ignore[arg-type]


@LAW
@given(st.data())
def test_resize(data: st.DataObject) -> None:
    """Equal, or refused by name; never another picture."""
    mode = data.draw(st.sampled_from(["nearest", "linear", "cubic"]))
    transform = data.draw(st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]))
    options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": transform}
    if mode == "nearest":
        options["nearest_mode"] = data.draw(
            st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
        )
    if mode == "cubic":
        options["cubic_coeff_a"] = data.draw(st.sampled_from([-0.75, -0.5]))
        options["exclude_outside"] = data.draw(st.integers(0, 1))
    if mode != "nearest" and transform == "half_pixel":
        options["antialias"] = data.draw(st.integers(0, 1))
    x = array(1, 2, data.draw(st.integers(3, 7)), data.draw(st.integers(3, 7)))
    sizes = [1, 2, data.draw(st.integers(2, 12)), data.draw(st.integers(2, 12))]
    if data.draw(st.booleans()):
        target: dict[str, Any] = {"roi": None, "scales": None, "sizes": ints(*sizes)}
    else:
        factors = [1.0, 1.0, *data.draw(st.sampled_from([(2.0, 2.0), (0.5, 0.5), (1.7, 2.3), (3.0, 1.5)]))]
        target = {"roi": None, "scales": np.array(factors, np.float32)}
    try:
        pairs = both("Resize", {"x": x}, target, **options)
    except InputError:
        return
    check(pairs)


@pytest.mark.parametrize(("mode", "options"), [
    ("linear", {}), ("linear", {"antialias": 1}), ("cubic", {}), ("cubic", {"antialias": 1, "cubic_coeff_a": -0.5}),
    ("nearest", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("nearest", {"nearest_mode": "round_prefer_ceil"}),
])  # fmt: skip
@pytest.mark.parametrize(("side", "scale"), [(48, 5 / 6), (47, 5 / 6), (10, 0.7), (20, 1.15), (9, 0.5)])
def test_a_scale_is_multiplied_in_single_precision(mode: str, options: dict[str, Any], side: int, scale: float) -> None:
    x, scales = array(1, 2, side, side), np.array([1, 1, scale, scale], np.float32)
    options = options | ({"exclude_outside": 1} if "antialias" in options else {})
    check(both("Resize", {"x": x}, {"roi": None, "scales": scales}, mode=mode, **options))


@pytest.mark.parametrize("factors", [(0.5, 0.5), (0.4, 2.0), (1.7, 0.7), (5 / 6, 1.0)])
def test_the_first_resize_rounds_up_where_it_shrinks(factors: tuple[float, float]) -> None:
    scales = np.array([1, 1, *factors], np.float32)
    check(both("Resize", {"x": array(1, 2, 12, 10)}, {"scales": scales}, opset=10, mode="nearest"), 0)


@pytest.mark.parametrize("name", ["Add", "Mul", "Sub", "Div", "Pow", "Mod", "Equal", "Less"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_constant_adds_its_axes(name: str, turned: bool) -> None:
    x, number = np.abs(array(2, 3)) + 1, np.full((1, 1, 1), 2, np.float32)
    options = {"fmod": 1} if name == "Mod" else {}
    if turned:
        pairs = both(name, {}, {"c": number, "d": np.ones((1, 1), np.float32)}, **options)
    else:
        pairs = both(name, {"x": x}, {"c": number}, **options)
    assert pairs[0][1].shape == ((1, 1, 1) if turned else (1, 2, 3))
    check(pairs)


@pytest.mark.parametrize("shapes", [((1, 1, 1), (1,)), ((1,), (1, 1, 1)), ((1, 1, 1), (1, 1, 1)), ((), (1, 1, 1))])
def test_a_choice_between_constants_has_their_axes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = np.full(shapes[0], 2, np.float32), np.full(shapes[1], 3, np.float32)
    check(both("Where", {"x": array(2, 3) > 0}, {"a": a, "b": b}))


@pytest.mark.parametrize(("name", "dtype", "a", "b"), [
    ("Sub", np.uint8, 3, 5), ("Add", np.int8, 100, 100), ("Mul", np.int32, 2**30, 6), ("Sub", np.uint32, 1, 2),
])  # fmt: skip
def test_constants_wrap_around(name: str, dtype: Any, a: int, b: int) -> None:
    check(both(name, {}, {"a": np.array([a], dtype), "b": np.array([b], dtype)}), 0)


def test_a_cast_of_a_constant_wraps_around() -> None:
    check(both("Cast", {}, {"a": ints(200, -129, 5)}, to=onnx.TensorProto.INT8), 0)


@LAW
@given(st.data())
def test_attention(data: st.DataObject) -> None:
    heads, kv_heads, dim, queries = 4, data.draw(st.sampled_from([4, 2])), 8, data.draw(st.integers(2, 6))
    keys = data.draw(st.sampled_from([queries, queries + 2]))
    flat = data.draw(st.booleans())
    options: dict[str, Any] = {"is_causal": data.draw(st.integers(0, 1))}
    if data.draw(st.booleans()):
        options["scale"] = 0.3
    if data.draw(st.booleans()):
        options["softcap"] = 2.0
    if flat:
        options |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
        q, k, v = array(2, queries, heads * dim), array(2, keys, kv_heads * dim), array(2, keys, kv_heads * dim)
    else:
        q, k, v = (array(2, h, n, dim) for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))
    shape = data.draw(st.sampled_from([None, (queries, keys), (1, queries, keys), (2, heads, queries, keys)]))
    inputs: dict[str, Any] = {"q": q, "k": k, "v": v}
    if shape is not None:
        mask = array(*shape)
        boolean = mask > -1.0
        boolean[..., 0] = True
        inputs["mask"] = boolean if data.draw(st.booleans()) else mask
    check(both("Attention", inputs, opset=23, **options), 1e-3)


@LAW
@given(st.data())
def test_rotary_embedding(data: st.DataObject) -> None:
    interleaved, partial = data.draw(st.integers(0, 1)), data.draw(st.sampled_from([0, 4]))
    half = (partial or 8) // 2
    inputs: dict[str, Any] = {"x": array(2, 3, 5, 8)}
    if data.draw(st.booleans()):
        inputs |= {"cos": array(10, half), "sin": array(10, half), "ids": RNG.integers(0, 10, (2, 5))}
    else:
        inputs |= {"cos": array(2, 5, half), "sin": array(2, 5, half)}
    check(both("RotaryEmbedding", inputs, opset=23, interleaved=interleaved, rotary_embedding_dim=partial))


@LAW
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    size, kernel = data.draw(st.integers(6, 9)), data.draw(st.integers(1, 3))
    strides, dilations = [data.draw(st.integers(1, 3))] * 2, [data.draw(st.integers(1, 2))] * 2
    auto = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    pads = [data.draw(st.integers(0, 2)) for _ in range(4)] if auto == "NOTSET" else None
    if auto.startswith("SAME"):
        dilations = [1, 1]
    options = {"strides": strides, "dilations": dilations, "auto_pad": auto, "pads": pads}
    x = array(1, 4, size, size + 1)
    check(both("Conv", {"x": x, "w": array(6, 2, kernel, kernel), "b": array(6)}, group=2, **options), 1e-3)
    pool = options | {"kernel_shape": [kernel, kernel]}
    if auto.startswith("SAME") and strides[0] > kernel:
        return  # refused: runtimes differ
    check(both("MaxPool", {"x": x}, **pool))
    if auto == "NOTSET":
        try:
            pairs = both("AveragePool", {"x": x}, count_include_pad=1, **(pool | {"dilations": None}))
        except InputError:
            return
        check(pairs)
        check(both("ConvTranspose", {"x": x, "w": array(4, 3, kernel, kernel)}, **options), 1e-3)


@LAW
@given(st.sampled_from(["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "Less", "Equal", "GreaterOrEqual"]),
       st.sampled_from([np.float32, np.int64]), st.sampled_from([(), (1,), (4,), (3, 1), (2, 1, 1)]), st.booleans(),
       st.booleans())  # fmt: skip
def test_binary(kind: str, dtype: Any, shape: tuple[int, ...], constant: bool, swap: bool) -> None:
    a, b = np.ceil(np.abs(3 * array(3, 4))) + 1, np.ceil(np.abs(2 * array(*shape))) + 1
    a, b = (a * np.sign(array(3, 4)) if kind in ("Div", "Sub") else a).astype(dtype), b.astype(dtype)
    options = {"fmod": 1} if kind == "Mod" and dtype is np.float32 else {}
    if constant and not swap:
        check(both(kind, {"a": a}, {"b": b}, **options))
    elif swap:
        check(both(kind, {"b": b, "a": a}, **options))
    else:
        check(both(kind, {"a": a, "b": b}, **options))


@pytest.mark.parametrize("equation", ["bhqd,bhkd->bhqk", "bij,bjk", "bqhd,bkhd->bhqk", "...ij,...jk->...ik", "ii->i"])
def test_einsum(equation: str) -> None:
    terms = equation.split("->")[0].split(",")
    ranks = [len(term.replace("...", "b")) for term in terms]
    inputs = {f"x{index}": array(*[3] * rank) for index, rank in enumerate(ranks)}
    check(both("Einsum", inputs, equation=equation))


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        ("BiasGelu", {"x": array(2, 8), "b": array(8)}, {}),
        ("FastGelu", {"x": array(2, 8), "b": array(8)}, {}),
        ("QuickGelu", {"x": array(2, 8)}, {"alpha": 1.702}),
        ("FusedMatMul", {"a": array(2, 3, 4), "b": array(2, 5, 4)}, {"transB": 1, "alpha": 0.5}),
        ("SkipLayerNormalization", {"x": array(2, 3, 8), "s": array(2, 3, 8), "w": array(8), "b": array(8)}, {}),
        ("MultiHeadAttention", {"q": array(2, 5, 8), "k": array(2, 5, 8), "v": array(2, 5, 8), "b": array(24)},
         {"num_heads": 2}),
    ],
)  # fmt: skip
def test_operators_of_onnx_runtime(name: str, inputs: dict[str, Any], attributes: dict[str, Any]) -> None:
    check(both(name, inputs, domain="com.microsoft", **attributes), 1e-3)


def test_packed_attention_of_onnx_runtime() -> None:
    weights = {"w": array(8, 24), "b": array(24)}
    check(both("Attention", {"x": array(2, 5, 8)}, weights, domain="com.microsoft", num_heads=2), 1e-3)
