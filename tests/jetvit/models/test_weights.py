"""Weight files: reading as data, unwrapping, prefixes, fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from jetvit.models.weights import copy_weights, read_folder, read_weights, strip_prefixes
from jetvit.patterns.errors import InputError


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Linear(3, 4), "norm": nn.LayerNorm(4)})


def state() -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in small_model().state_dict().items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_read_back(tmp_path: Path, suffix: str):
    tensors = state()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    torch.testing.assert_close(read_weights(path), tensors)


@pytest.mark.parametrize("wrap", [("state_dict",), ("model",), ("teacher",), ("model", "state_dict")])
def test_wrapped(tmp_path: Path, wrap: tuple[str, ...]):
    tensors = state()
    held: Any = tensors
    for key in wrap:
        held = {key: held, "epoch": 3}
    torch.save(held, tmp_path / "w.pt")
    torch.testing.assert_close(read_weights(tmp_path / "w.pt"), tensors)


def test_no_file_and_no_suffix(tmp_path: Path):
    with pytest.raises(InputError, match=r"no weight file .*none\.pt"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"'\.h5' is none of \.safetensors"):
        read_weights(tmp_path / "w.h5")


def test_python_objects_are_refused_unread(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"module\.pt holds more than tensors") as refusal:
        read_weights(tmp_path / "module.pt")
    assert "it holds a torch.nn.modules.linear.Linear" in refusal.value.why
    assert "model.state_dict()" in refusal.value.do


def test_no_weights_by_name(tmp_path: Path):
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"a dict of \['epoch'\]"):
        read_weights(tmp_path / "w.pt")
    torch.save([torch.ones(1)], tmp_path / "w.pt")
    with pytest.raises(InputError, match="it holds a list"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(content=st.binary(max_size=64))
def test_any_bytes_are_a_refusal(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"w{suffix} (is no whole weight file|is no weight file|holds|is refused)"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_cut_off_file(tmp_path: Path, suffix: str):
    path = tmp_path / f"w{suffix}"
    torch.save(state(), path) if suffix == ".pt" else save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="no whole weight file") as refusal:
        read_weights(path)
    assert "download or copy it again" in refusal.value.do


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: float, dtype: torch.dtype):
    tensors = {"fine": torch.ones(3), "count": torch.ones(3, dtype=torch.int64), "bad": torch.ones(5, dtype=dtype)}
    tensors["bad"][2] = value
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="the weight bad holds NaN or Inf") as refusal:
        read_weights(tmp_path / "w.safetensors")
    assert refusal.value.why == "of its 5 values, 1 not finite"
    assert refusal.value.where == str(tmp_path / "w.safetensors")


def write_shards(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path: Path):
    assert read_folder(tmp_path) is None
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "2.safetensors")
    write_shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    assert (read_folder(tmp_path) or {}).keys() == {"a", "b"}
    write_shards(tmp_path, {"a": "1.safetensors", "b": "3.safetensors"})
    with pytest.raises(InputError, match=r"the shard 3\.safetensors is missing") as refusal:
        read_folder(tmp_path)
    assert refusal.value.where == str(tmp_path)


@pytest.mark.parametrize("shard", ["../1.safetensors", "/etc/1.safetensors", 3])
def test_a_shard_stays_in_its_folder(tmp_path: Path, shard: Any):
    write_shards(tmp_path, {"a": shard})
    with pytest.raises(InputError, match="leaves its folder"):
        read_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "{"])
def test_a_broken_index(tmp_path: Path, text: str):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="is no index of shards"):
        read_folder(tmp_path)


@given(st.lists(st.sampled_from(["module.", "model.", "backbone.", "_orig_mod."]), max_size=3))
def test_prefixes_are_taken_off(chain: list[str]):
    tensors = state()
    prefixed = {"".join(chain) + name: tensor for name, tensor in tensors.items()}
    assert strip_prefixes(prefixed, tensors).keys() == tensors.keys()


def test_prefixes_stay_where_they_belong():
    tensors = {"model.a": torch.ones(1), "b": torch.ones(1)}
    assert strip_prefixes(tensors, ["model.a", "b"]).keys() == tensors.keys()
    both = {"model.a": torch.ones(1), "a": torch.ones(1), "model.b": torch.ones(1)}
    assert strip_prefixes(both, ["a", "b"]).keys() == both.keys()
    head = {"backbone.a": torch.ones(1), "head.w": torch.ones(1)}
    assert strip_prefixes(head, ["a"]).keys() == {"a", "head.w"}


def test_copied_and_cast():
    model, tensors = small_model(), {name: tensor.half() for name, tensor in state().items()}
    assert copy_weights(model, tensors, "w.pt") == []
    torch.testing.assert_close(model.state_dict(), {name: tensor.float() for name, tensor in tensors.items()})


def test_missing_misshapen_and_unexpected_are_listed_together():
    model, tensors = small_model(), state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del tensors["embed.weight"]
    tensors["norm.bias"] = torch.ones(7)
    tensors |= {f"blocks.{i}": torch.ones(2) for i in range(8)}
    with pytest.raises(InputError, match="the weights do not fit the model") as refusal:
        copy_weights(model, tensors, "folder/w.pt")
    assert "1 missing: embed.weight [4, 3]" in refusal.value.why
    assert "1 misshapen: norm.bias [7] in the file, [4] in the model" in refusal.value.why
    assert "8 unexpected: blocks.0 [2], blocks.1 [2]" in refusal.value.why
    assert "and 3 more" in refusal.value.why
    assert refusal.value.where == "folder/w.pt"
    assert "num_classes=0" in refusal.value.do
    torch.testing.assert_close(dict(model.state_dict()), before)


def test_an_integer_tensor_is_not_cast_to_a_weight():
    tensors = state()
    tensors["norm.bias"] = torch.ones(4, dtype=torch.int8)
    with pytest.raises(InputError, match=r"norm\.bias torch\.int8 in the file, torch\.float32 in the model"):
        copy_weights(small_model(), tensors, "w.pt")


@pytest.mark.parametrize("head", ["head", "head_dist", "fc", "classifier"])
def test_an_unused_head_is_a_note(head: str):
    extra = {f"{head}.weight": torch.ones(2, 4), f"{head}.bias": torch.ones(2)}
    notes = copy_weights(small_model(), state() | extra, "folder/w.pt")
    assert notes == [f"unused classifier head in w.pt: {head}.bias, {head}.weight"]


@pytest.mark.parametrize("name", ["header.weight", "fc_norm.weight", "norm.fc.weight", "head"])
def test_what_only_looks_like_a_head_is_not(name: str):
    with pytest.raises(InputError, match="1 unexpected"):
        copy_weights(small_model(), state() | {name: torch.ones(2)}, "w.pt")


def test_a_head_that_the_model_has_must_fit():
    model = nn.ModuleDict({"head": nn.Linear(2, 2)})
    with pytest.raises(InputError, match=r"1 unexpected: head\.scale"):
        copy_weights(model, {**model.state_dict(), "head.scale": torch.ones(2)}, "w.pt")
