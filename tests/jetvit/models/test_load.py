"""Every way to name a model, and what is said when it cannot be loaded."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

import jetvit
from jetvit.models.load import load_model, parse_model_args
from jetvit.patterns.errors import InputError

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(spec: str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        load_model(spec, **options)
    return caught.value


def first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


# HuggingFace folders


@pytest.mark.parametrize(
    ("family", "class_name", "patch", "image"),
    [
        ("Dinov2", "Dinov2Model", 14, 28),
        ("DINOv3", "DINOv3ViTModel", 16, 32),
        ("ViT", "ViTModel", 16, 32),
        ("ViTClassifier", "ViTForImageClassification", 16, 32),
        ("DepthAnything", "DepthAnythingForDepthEstimation", 14, 28),
    ],
)
def test_a_folder_gives_the_class_it_was_saved_from(
    hf_folder: Write, family: str, class_name: str, patch: int, image: int
):
    loaded = load_model(f"hf:{hf_folder(family)}")
    assert isinstance(loaded.model, nn.Module)
    assert type(loaded.model).__name__ == class_name
    assert not loaded.model.training
    assert (loaded.patch_size, loaded.image_size) == (patch, (image, image))
    assert (loaded.mean, loaded.notes, loaded.random_weights) == (None, [], False)
    assert loaded.kwargs == ({"interpolate_pos_encoding": True} if family.startswith("ViT") else {})
    args, kwargs = loaded.inputs(torch.randn(2, 3, 3 * patch, 4 * patch))
    assert first_tensor(loaded.model(*args, **kwargs)).isfinite().all()


@pytest.mark.parametrize("family", ["Dinov2", "DINOv3"])
def test_the_weights_are_those_of_the_file(hf_folder: Write, family: str):
    folder = hf_folder(family)
    edit(folder, lambda tensors: tensors["embeddings.cls_token"].fill_(7))
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(f"hf:{folder}", dtype=dtype).model
        assert isinstance(model, nn.Module)
        assert all(parameter.dtype == dtype for parameter in model.parameters())
        assert (model.state_dict()["embeddings.cls_token"] == 7).all()


def test_shards_and_a_pickled_state_dict(hf_folder: Write):
    folder = hf_folder("ViT", max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    sharded = load_model(f"hf:{folder}").model
    tensors: dict[str, Tensor] = {}
    for shard in folder.glob("model-*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    assert "is missing" in refusal(f"hf:{folder}").what
    (folder / "model.safetensors.index.json").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    whole = load_model(f"hf:{folder}").model
    assert isinstance(sharded, nn.Module)
    assert isinstance(whole, nn.Module)
    torch.testing.assert_close(whole.state_dict(), sharded.state_dict())


def test_a_missing_key(hf_folder: Write):
    folder = hf_folder("Dinov2")
    edit(folder, lambda tensors: tensors.__delitem__("layernorm.weight"))
    error = refusal(f"hf:{folder}")
    assert "1 missing: layernorm.weight [16]" in error.why
    assert error.where == str(folder)


def test_a_misshapen_key(hf_folder: Write):
    folder = hf_folder("DINOv3")
    edit(folder, lambda tensors: tensors.update({"norm.weight": torch.ones(5)}))
    assert "1 misshapen: norm.weight [5] in the file, [16] in the model" in refusal(f"hf:{folder}").why


def test_a_nan(hf_folder: Write):
    folder = hf_folder("DepthAnything")

    def poison(tensors: dict[str, Tensor]) -> None:
        tensors["backbone.layernorm.bias"][3] = float("nan")

    edit(folder, poison)
    error = refusal(f"hf:{folder}")
    assert error.what == "the weight backbone.layernorm.bias holds NaN or Inf"
    assert error.where == str(folder / "model.safetensors")


def test_unexpected_keys_and_an_unused_head(hf_folder: Write):
    folder = hf_folder("Dinov2")
    edit(folder, lambda tensors: tensors.update({"classifier.weight": torch.ones(2, 16)}))
    assert load_model(f"hf:{folder}").notes == [f"unused classifier head in {folder.name}: classifier.weight"]
    edit(folder, lambda tensors: tensors.update({"decoder.weight": torch.ones(2, 16)}))
    assert "1 unexpected: decoder.weight [2, 16]" in refusal(f"hf:{folder}").why


def test_no_weights_is_an_error_and_random_weights_are_a_choice(hf_folder: Write):
    folder = hf_folder("DINOv3")
    (folder / "model.safetensors").unlink()
    error = refusal(f"hf:{folder}")
    assert error.what == f"{folder} holds no weights"
    assert error.do == "pass --weights F, or --model-arg random=true for random weights"
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (load_model(f"hf:{folder}", model_args={"random": True}) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.random_weights
    assert first.notes == ["random weights: latency is real, quality is not"]
    assert isinstance(first.model, nn.Module)
    assert isinstance(second.model, nn.Module)
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict())


def test_weights_from_another_file(hf_folder: Write, tmp_path: Path):
    folder = hf_folder("Dinov2")
    tensors = {f"module.{k}": v.half() for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    loaded = load_model(f"hf:{folder}", weights=tmp_path / "w.pth")
    assert loaded.notes == [f"weights from {tmp_path / 'w.pth'}"]
    assert isinstance(loaded.model, nn.Module)
    given = tensors["module.embeddings.cls_token"].float()
    assert torch.equal(loaded.model.state_dict()["embeddings.cls_token"], given)


def test_the_image_configuration(hf_folder: Write):
    folder = hf_folder("Dinov2")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    loaded = load_model(f"hf:{folder}")
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    file.write_text(json.dumps({"do_normalize": False, "image_mean": [0.1, 0.2, 0.3]}))
    assert load_model(f"hf:{folder}").std == (1.0, 1.0, 1.0)
    file.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": False}))
    assert load_model(f"hf:{folder}").std == (0.5 / 255,) * 3  # for pixels from 0 to 255
    file.write_text(json.dumps({"image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 2 / 255}))
    assert load_model(f"hf:{folder}").mean == (0.5,) * 3
    for broken in ("{", "[]", '{"image_mean": [1], "image_std": [1]}', '{"image_mean": 3, "image_std": 3}'):
        file.write_text(broken)
        assert refusal(f"hf:{folder}").what == f"{file} is no image configuration"


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": {"height": 56, "width": 42}}, (56, 42)),
        ({"size": 42}, (42, 42)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 42, "width": 42}, "do_center_crop": True}, (42, 42)),
        ({"size": {"shortest_edge": 256}, "crop_size": 42}, (42, 42)),
        ({"size": {"height": 56, "width": 56}, "crop_size": 42, "do_center_crop": False}, (56, 56)),
        ({"size": {"height": 56, "width": 56}, "do_resize": False}, None),
        ({"size": {"shortest_edge": 256, "longest_edge": 512}}, None),
        ({"size": None}, None),
        ({}, None),
    ],
)
def test_the_input_size_is_that_of_the_processor(hf_folder: Write, processor: Any, size: Any):
    folder = hf_folder("Dinov2")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load_model(f"hf:{folder}")
    assert (loaded.input_size, loaded.image_size) == (size, (28, 28))
    assert load_model(f"hf:{folder}", model_args={"image_size": 28}).input_size is None


def test_the_image_processor_of_a_processor(hf_folder: Write):
    folder = hf_folder("Dinov2")
    image_processor = {"size": {"height": 42, "width": 42}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": image_processor}))
    loaded = load_model(f"hf:{folder}")
    assert (loaded.input_size, loaded.mean, loaded.std) == ((42, 42), (0.1,) * 3, (0.2,) * 3)


def test_configuration_entries_as_arguments(hf_folder: Write):
    folder = hf_folder("DINOv3")
    loaded = load_model(f"hf:{folder}", model_args={"attn_implementation": "eager", "layer_norm_eps": 1e-3})
    assert isinstance(loaded.model, nn.Module)
    config: Any = loaded.model.config
    assert (config._attn_implementation, config.layer_norm_eps) == ("eager", 1e-3)
    for key, value in {"layer_eps": 1, "_attn_implementation": "eager", "attn_implementation": "a/b"}.items():
        assert refusal(f"hf:{folder}", model_args={key: value}).what.startswith(f"the model argument {key}={value}")
    assert "trust_remote_code" in refusal(f"hf:{folder}", model_args={"trust_remote_code": True}).what
    # transformers 4.57 takes it and fails to build the model.
    error = refusal(f"hf:{folder}", model_args={"num_hidden_layers": "many"})
    assert "num_hidden_layers=many" in error.what or "check config.json and every --model-arg" in error.do


def test_no_folder_and_no_configuration(tmp_path: Path):
    error = refusal(f"hf:{tmp_path / 'none'}")
    assert error.what == f"{tmp_path / 'none'} is no HuggingFace folder"
    assert error.why == "there is no such folder"
    assert "hf:ORG/NAME" in error.do
    assert refusal(f"hf:{tmp_path}").why == "it has no config.json"
    for text, words in {
        **{"": "config.json cannot be read", "{": "config.json cannot be read"},
        **dict.fromkeys(("[]", "{}"), "is no configuration that transformers"),
        '{"model_type": "none-such"}': "does not know the model type 'none-such'",
    }.items():
        (tmp_path / "config.json").write_text(text)
        assert words in refusal(f"hf:{tmp_path}").what


def test_code_in_the_folder_is_never_run(hf_folder: Write):
    folder = shutil.copytree(hf_folder("Dinov2"), hf_folder("Dinov2") / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text(f"open({str(folder / 'mark')!r}, 'w')")
    config |= {"model_type": "evil", "architectures": ["Evil"]}
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "code in the folder is never run" in refusal(f"hf:{folder}").do
    config["model_type"] = "dinov2"
    (folder / "config.json").write_text(json.dumps(config))
    error = refusal(f"hf:{folder}")
    assert error.why == "config.json names the architecture Evil"
    config["architectures"] = ["pipeline"]  # a name that transformers has, but no model
    (folder / "config.json").write_text(json.dumps(config))
    assert "has no model class" in refusal(f"hf:{folder}").what
    assert not (folder / "mark").exists()


def test_without_architectures_it_is_the_base_model(hf_folder: Write):
    folder = hf_folder("Dinov2")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load_model(f"hf:{folder}").model).__name__ == "Dinov2Model"


def test_the_hub_is_as_it_was_afterwards(hf_folder: Write):
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    load_model(f"hf:{hf_folder('Dinov2')}")
    assert offline == constants.HF_HUB_OFFLINE


def test_a_text_model_is_refused(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(**small, vocab_size=20)).save_pretrained(tmp_path)
    error = refusal(f"hf:{tmp_path}")
    assert error.what == "BertModel is no vision model"
    assert "input_ids" in error.why


# timm


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [("vit_tiny_patch16_224", 224, 0.5), ("vit_small_patch14_dinov2", 518, 0.485), ("vit_tiny_patch16_384", 384, 0.5)],
)
def test_a_timm_model_takes_the_size_and_normalisation_of_its_data_configuration(name: str, size: int, mean: float):
    loaded = load_model(f"timm:{name}", model_args={"depth": 1})
    assert (loaded.image_size, loaded.mean and loaded.mean[0]) == ((size, size), mean)
    assert loaded.std is not None


def test_a_timm_model_has_random_weights_and_any_size():
    first, second = (load_model("timm:vit_tiny_patch16_224", model_args={"depth": 1}) for _ in range(2))
    assert first.random_weights
    assert (first.patch_size, first.image_size, first.mean) == (16, (224, 224), (0.5, 0.5, 0.5))
    assert isinstance(first.model, nn.Module)
    assert isinstance(second.model, nn.Module)
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict())
    assert first.model(torch.randn(1, 3, 64, 96)).shape == (1, 1000)


def test_a_timm_class_without_dynamic_sizes_is_built_without():
    loaded = load_model("timm:resnet10t", dtype=torch.bfloat16)
    assert isinstance(loaded.model, nn.Module)
    assert all(parameter.dtype == torch.bfloat16 for parameter in loaded.model.parameters())
    assert loaded.patch_size is None


def test_real_weights(data: Path):
    file = data / "vit_tiny_patch16_224.safetensors"
    args = parse_model_args(["num_classes=0", "global_pool="])
    loaded = load_model("timm:vit_tiny_patch16_224", weights=file, model_args=args)
    assert loaded.notes == [f"unused classifier head in {file.name}: head.bias, head.weight"]
    assert not loaded.random_weights
    assert isinstance(loaded.model, nn.Module)
    assert loaded.model(torch.randn(1, 3, 224, 224)).shape == (1, 197, 192)
    weight = loaded.model.state_dict()["blocks.3.attn.qkv.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, load_file(file)["blocks.3.attn.qkv.weight"].float())


def test_position_embeddings_are_resampled(data: Path):
    file = data / "vit_tiny_patch16_224.safetensors"
    loaded = load_model("timm:vit_tiny_patch16_224", weights=file, model_args={"img_size": [64, 96]})
    assert loaded.notes == ["pos_embed resampled from 14×14 to 4×6 tokens"]
    assert loaded.image_size == (64, 96)
    assert isinstance(loaded.model, nn.Module)
    mine, given = loaded.model.state_dict()["pos_embed"], load_file(file)["pos_embed"].float()
    assert torch.equal(mine[:, 0], given[:, 0])
    # Averages over cells are near what bicubic resampling gives, and far from a grid with its sides swapped.
    grid = given[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    averages = nn.functional.adaptive_avg_pool2d(grid, (4, 6)).flatten(2).transpose(1, 2)
    assert torch.corrcoef(torch.stack([mine[:, 1:].flatten(), averages.flatten()]))[0, 1] > 0.95


def test_position_embeddings_of_no_square_grid_do_not_fit(tmp_path: Path):
    small = {"depth": 1, "num_classes": 0}
    donor = load_model("timm:vit_tiny_patch16_224", model_args={**small, "img_size": [32, 48]}).model
    assert isinstance(donor, nn.Module)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    error = refusal("timm:vit_tiny_patch16_224", model_args=small, weights=tmp_path / "w.safetensors")
    assert "1 misshapen: pos_embed [1, 7, 192] in the file, [1, 197, 192] in the model" in error.why


def test_weights_of_another_width_do_not_fit(data: Path):
    error = refusal("timm:vit_small_patch16_224", weights=data / "vit_tiny_patch16_224.safetensors")
    assert "misshapen: blocks.0.attn.proj.bias [192] in the file, [384] in the model" in error.why


def test_unknown_timm_names_and_arguments():
    error = refusal("timm:vit_tiny_patch16_244")
    assert "has no model 'vit_tiny_patch16_244'" in error.what
    assert "vit_tiny_patch16_224" in error.why
    assert "has no model 'hf-hub:a/b'" in refusal("timm:hf-hub:a/b").what
    assert "Invalid pretrained tag" in refusal("timm:vit_tiny_patch16_224.none").why
    error = refusal("timm:vit_tiny_patch16_224", model_args={"dept": 1})
    assert error.what == "timm could not build vit_tiny_patch16_224"
    assert "'dept'" in error.why
    for key in ("pretrained", "checkpoint_path"):
        error = refusal("timm:vit_tiny_patch16_224", model_args={key: True})
        assert error.what == f"the model argument {key} is not supported"
        assert "--weights" in error.do


@pytest.mark.parametrize(("spec", "package"), [("timm:vit_tiny_patch16_224", "timm"), ("hf:", "transformers")])
def test_a_package_that_is_not_installed(spec: str, package: str, hf_folder: Write, monkeypatch: pytest.MonkeyPatch):
    if package == "transformers":
        spec += str(hf_folder("Dinov2"))
    monkeypatch.setitem(sys.modules, package, None)
    error = refusal(spec)
    assert error.what == f"cannot import {package}"
    assert error.do == 'pip install "jetvit[models]"'


# The user's own code


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def conv(width=4): return nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Dropout())\n"
        "def number(): return 3\n"
        "def broken(): raise ValueError('no such width')\n"
    )
    (tmp_path / "my_broken.py").write_text("import torch\nraise OSError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return "my_models"


def test_a_factory_runs_and_says_so(user_module: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    loaded = load_model("my_models:conv", model_args={"width": 8}, dtype=torch.float64)
    assert loaded.notes == ["ran your code: my_models:conv"]
    assert "running your code: my_models:conv" in caplog.text
    assert isinstance(loaded.model, nn.Module)
    assert not loaded.model.training
    assert loaded.model.get_parameter("0.weight").shape == (8, 3, 4, 4)
    assert loaded.model.get_parameter("0.weight").dtype == torch.float64
    save_file({"0.weight": torch.ones(4, 3, 4, 4), "0.bias": torch.ones(4)}, tmp_path / "w.safetensors")
    filled = load_model("my_models:conv", weights=tmp_path / "w.safetensors").model
    assert isinstance(filled, nn.Module)
    assert (filled.get_parameter("0.weight") == 1).all()


def test_a_factory_that_is_not_there_or_fails(user_module: str, tmp_path: Path):
    error = refusal("no_such.package:make")
    assert error.what == "cannot import no_such.package"
    assert "PYTHONPATH" in error.do
    assert "such as conv" in refusal("my_models:conf").do
    error = refusal("my_broken:make")
    assert error.why == "OSError: no licence"
    assert error.where == f"{tmp_path / 'my_broken.py'}:2"
    error = refusal("my_models:broken")
    assert error.why == "ValueError: no such width"
    assert error.where == f"{tmp_path / 'my_models.py'}:4"
    assert "depth" in refusal("my_models:conv", model_args={"depth": 1}).do
    assert refusal("my_models:number").why == "it is of type int"


# Exported programs, and everything else


class Flagged(nn.Module):
    def forward(self, pixel_values: Tensor, double: bool = False) -> Tensor:
        return pixel_values.mean((2, 3)) * (2 if double else 1)


def test_a_program_keeps_its_inputs(tmp_path: Path):
    path = tmp_path / "m.pt2"
    images = torch.randn(2, 3, 8, 12)
    torch.export.save(torch.export.export(Flagged(), (images,), {"double": True}), path)
    loaded = load_model(str(path))
    assert isinstance(loaded.model, torch.export.ExportedProgram)
    assert (loaded.kwargs, loaded.input_name, loaded.image_size) == ({"double": True}, None, (8, 12))
    torch.export.save(torch.export.export(Flagged(), (), {"pixel_values": images, "double": True}), path)
    loaded = load_model(str(path))
    assert (loaded.kwargs, loaded.input_name) == ({"double": True}, "pixel_values")
    args, kwargs = loaded.inputs(images)
    assert isinstance(loaded.model, torch.export.ExportedProgram)
    torch.testing.assert_close(loaded.model.module()(*args, **kwargs), images.mean((2, 3)) * 2)
    error = refusal(str(path), dtype=torch.float16, model_args={"a": 1})
    assert error.what == "--model-arg, --dtype cannot change an exported program"


def test_a_program_of_two_images_is_refused(tmp_path: Path):
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    program = torch.export.export(Two(), (torch.ones(2),), {"y": torch.ones(2)})
    torch.export.save(program, tmp_path / "m.pt2")
    error = refusal(str(tmp_path / "m.pt2"))
    assert error.what == "the program takes more than a batch of images"
    assert error.why == "its inputs are x, y"


def test_an_onnx_file_becomes_a_program(tmp_path: Path):
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Flatten(2))
    path = jetvit.export(model, torch.ones(2, 3, 8, 12), target="onnx", path=tmp_path / "m.onnx")
    loaded = load_model(str(path))
    assert isinstance(loaded.model, ExportedProgram)
    assert loaded.image_size == (8, 12)
    images = torch.randn(2, 3, 8, 12)
    args, kwargs = loaded.inputs(images)
    (found,) = loaded.model.module()(*args, **kwargs).values()
    torch.testing.assert_close(found, model(images))
    assert refusal(str(path), dtype=torch.float16).what.startswith("--dtype cannot change")


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path):
    path = tmp_path / "m.onnx"
    for content in (b"", b"not a model", b"\x08\x07" * 50):
        path.write_bytes(content)
        assert "m.onnx" in str(refusal(str(path)))


def test_what_names_no_model(tmp_path: Path):
    for spec in ("vit_tiny_patch16_224", "", "a b:c"):
        error = refusal(spec)
        assert "hf:DIR, hf:ORG/NAME, timm:NAME, pkg.module:factory" in error.why
        assert f"timm:{spec}" in error.do
    assert refusal(str(tmp_path)).do == f"for a HuggingFace folder write hf:{tmp_path}"


def test_devices():
    assert refusal("timm:vit_tiny_patch16_224", device="gpu").what == "'gpu' is no device"
    missing = f"cuda:{torch.cuda.device_count()}"
    assert refusal("timm:vit_tiny_patch16_224", device=missing).what == f"the device {missing} is not there"


# Model arguments


def test_arguments_become_python_values():
    items = [
        "num_classes=0",
        "global_pool=",
        "eps=1e-6",
        "bias=True",
        "norm=none",
        "img_size=[64,96]",
        'tag="7"',
        "a=b=c",
    ]
    assert parse_model_args(items) == {
        "num_classes": 0,
        "global_pool": "",
        "eps": 1e-6,
        "bias": True,
        "norm": None,
        "img_size": [64, 96],
        "tag": "7",
        "a": "b=c",
    }


def text_of(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | numbers | st.text() | st.lists(numbers | st.booleans() | st.text())


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True), values, max_size=5))
def test_arguments_round_trip(args: dict[str, Any]):
    parsed = parse_model_args(f"{key}={text_of(value)}" for key, value in args.items())
    assert parsed == args
    assert [type(value) for value in parsed.values()] == [type(value) for value in args.values()]


@given(st.text(max_size=20))
def test_any_text_is_an_argument_or_a_refusal(text: str):
    try:
        (key,) = parse_model_args([text])
    except InputError:
        return
    assert text.startswith(f"{key}=")


@pytest.mark.parametrize("item", ["depth", "=3", "a-b=3", "3=3", "img_size=[64,", 'tag="7'])
def test_a_broken_argument_is_named(item: str):
    with pytest.raises(InputError, match="cannot read the model argument") as caught:
        parse_model_args([item])
    assert repr(item) in caught.value.what


def test_an_argument_is_given_once():
    with pytest.raises(InputError, match="'depth' is given twice"):
        parse_model_args(["depth=1", "depth=2"])
