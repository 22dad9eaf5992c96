"""Files that are not what their names say: each is called what it is, and nothing of it is run."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from jetvit.cost_model.files.file_content import is_truncated, pickled_names, refuse_unsafe, repair
from jetvit.files import load_exported
from jetvit.models.weights import read_weights
from jetvit.patterns.errors import InputError


class Payload:
    def __reduce__(self):
        return os.mkdir, ("run",)


def read_onnx(path: Path) -> object:
    pytest.importorskip("onnxscript")
    from jetvit.passes.frontends.onnx import read_onnx

    return read_onnx(path)


READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": read_weights,
    ".pth": read_weights,
    ".pt": read_weights,
    ".bin": read_weights,
    ".pt2": load_exported,
    ".onnx": read_onnx,
}


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "run").exists()


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        READERS[path.suffix](path)
    return caught.value


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_called_that(tmp_path: Path, suffix: str, protocol: int):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({"weight": Payload()}, protocol))
    error = refusal(path)
    assert error.what == f"{path} is refused: reading it would run a program"
    assert error.why == f"it is a pickle that calls {os.mkdir.__module__}.mkdir"
    assert "download" not in error.do


@pytest.mark.parametrize("suffix", READERS)
def test_so_is_an_archive_with_such_a_pickle(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    torch.save({"weight": Payload()}, path)
    assert refusal(path).why.endswith(f"data.pkl is a pickle that calls {os.mkdir.__module__}.mkdir")


@pytest.mark.parametrize("suffix", [".pth", ".pt2"])
def test_a_zip_bomb_and_a_path_that_climbs_out(tmp_path: Path, suffix: str):
    bomb, climber = tmp_path / f"bomb{suffix}", tmp_path / f"climber{suffix}"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert refusal(bomb).what == f"{bomb} is refused: it is a zip bomb"
    for name in ("../../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"):
        with zipfile.ZipFile(climber, "w") as archive:
            archive.writestr(name, b"x")
        assert "lies outside the folder that it is unpacked into" in refusal(climber).why


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """Sound files of every kind."""
    tensors, files = {"weight": torch.zeros(1000)}, {}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    program = torch.export.export(torch.nn.Linear(3, 3), (torch.zeros(1, 3),))
    torch.export.save(program, tmp_path / "a.pt2")
    try:
        import onnx
    except ImportError:
        pass
    else:
        helper, floats = onnx.helper, [1000]
        weight = onnx.numpy_helper.from_array(torch.zeros(1000).numpy(), "w")
        x, y = (helper.make_tensor_value_info(name, 1, floats) for name in "xy")
        graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
        onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    for file in tmp_path.glob("a.*"):
        files[file.suffix] = file.read_bytes()
    return files


def test_an_interrupted_download_is_told_of_where_the_file_is_truncated(tmp_path: Path, whole: dict[str, bytes]):
    for suffix, content in whole.items():
        path = tmp_path / f"b{suffix}"
        for length in (len(content) // 2, len(content) - 5):
            path.write_bytes(content[:length])
            assert "as after an interrupted download" in refusal(path).do, (suffix, length)
        path.write_bytes(content)
        refuse_unsafe(path)
        assert not is_truncated(path)


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"\xff" * 999, "again"),
    ],
)
def test_other_content_is_not_called_an_interrupted_download(tmp_path: Path, suffix: str, content: bytes, words: str):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    error = refusal(path)
    assert words in error.do
    assert "interrupted" not in error.do


def test_names_behind_a_memo_are_found():
    call = b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94h\x00h\x01\x93\x8c\x03run\x85R."
    assert list(pickled_names(io.BytesIO(call))) == ["os.mkdir"]


def test_what_training_programs_keep_beside_weights_is_no_attack(tmp_path: Path):
    kept = {"classes": {1, 2}, "path": tmp_path, "options": argparse.Namespace(a=1), "type": int, "range": range(3)}
    for zipped in (True, False):
        torch.save(kept | {"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        refuse_unsafe(tmp_path / "a.pth")


@given(
    content=st.binary(max_size=64), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x04", b"\x08", b"\0" * 8 + b"{"])
)
def test_any_bytes_have_an_advice(tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(start + content)
    assert repair(path, "otherwise")
    assert is_truncated(path) in (True, False)
