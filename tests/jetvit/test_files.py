"""Outputs appear whole or not at all; a `.pt2` archive that would run code is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jetvit.files import _is_arithmetic, atomic_path, atomic_write, load_exported
from jetvit.patterns.errors import InputError


def write_text(path: Path, text: str = "new") -> None:
    with atomic_write(path) as stream:
        stream.write(text)


def test_text_is_utf8_with_the_usual_permissions(tmp_path: Path):
    write_text(tmp_path / "out.txt", "4×6\n")
    assert (tmp_path / "out.txt").read_bytes() == "4×6\n".encode()
    (tmp_path / "plain.txt").write_text("")
    assert (tmp_path / "out.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_bytes(tmp_path: Path):
    with atomic_write(tmp_path / "out.bin", "wb") as stream:
        stream.write(b"\0\1")
    assert (tmp_path / "out.bin").read_bytes() == b"\0\1"


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path):
    target = tmp_path / "out.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_write(target) as stream:
            stream.write("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.txt", "old")]


def test_a_path_for_writers_that_want_a_name(tmp_path: Path):
    with atomic_path(tmp_path / "out.pt2") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".pt2"
        assert not (tmp_path / "out.pt2").exists()
        temporary.write_bytes(b"x")
    assert [file.name for file in tmp_path.iterdir()] == ["out.pt2"]


def test_a_link_is_followed(tmp_path: Path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_missing_folder_comes_with_the_command_that_makes_it(tmp_path: Path):
    with pytest.raises(InputError) as refusal:
        write_text(tmp_path / "no" / "out.txt")
    assert f"the folder {tmp_path / 'no'} does not exist" in str(refusal.value)
    assert f"mkdir -p {tmp_path / 'no'}" in refusal.value.do


def test_a_folder_or_a_device_is_not_replaced(tmp_path: Path):
    with pytest.raises(InputError, match="it is a folder"):
        write_text(tmp_path)
    with pytest.raises(InputError, match="no regular file"):
        write_text(Path(os.devnull))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.register_buffer("offset", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor, flag: bool = False) -> torch.Tensor:
        return self.conv(x).flatten(2).transpose(1, 2) + self.offset


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "tiny.pt2"
    dim = torch.export.Dim
    shapes = {"x": {0: dim("batch", max=8), 2: 4 * dim("h", max=9), 3: dim.DYNAMIC}, "flag": None}
    program = torch.export.export(Tiny().eval(), (torch.randn(2, 3, 8, 12),), {"flag": True}, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def forge(archive: Path, path: Path, record: str, change: Callable[[bytes], bytes]) -> Path:
    """Copy an archive with one record changed."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        assert any(info.filename.endswith(record) for info in source.infolist())
        for info in source.infolist():
            content = source.read(info)
            target.writestr(info.filename, change(content) if info.filename.endswith(record) else content)
    return path


def edit(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        loaded = json.loads(content)
        change(loaded)
        return json.dumps(loaded).encode()

    return apply


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, "boom"))


def test_a_program_of_dynamic_shape_round_trips(archive: Path):
    program = load_exported(archive)
    assert program.module()(torch.randn(3, 3, 16, 20), flag=True).shape == (3, 20, 4)


def test_an_unchanged_copy_loads(archive: Path, tmp_path: Path):
    load_exported(forge(archive, tmp_path / "copy.pt2", "model.json", bytes))


def mark_as_pickled(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def opaque(config: Any) -> None:
    next(iter(config["config"].values()))["path_name"] = "opaque_obj_0"


def evil_expression(program: Any) -> None:
    text = json.dumps(program["graph_module"]).replace('"expr_str": "Symbol', '"expr_str": "exec(1) or Symbol', 1)
    program["graph_module"] = json.loads(text)


def evil_guard(program: Any) -> None:
    program["guards_code"] = ["__import__('os').getcwd() != ''"]


def evil_name(program: Any) -> None:
    text = json.dumps(program["graph_module"]).replace('{"name": "x"}', '{"name": "x=print(1)"}')
    program["graph_module"] = json.loads(text)


def evil_key(program: Any) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("flag", "f(1)")


@pytest.mark.parametrize(
    ("record", "change", "reason"),
    [
        ("model_weights_config.json", mark_as_pickled, "is stored as a pickled object"),
        ("model_constants_config.json", opaque, "is stored as a pickled object"),
        ("models/model.json", evil_expression, 'its expr_str "exec(1)'),
        ("models/model.json", evil_guard, "its guards_code"),
        ("models/model.json", evil_name, "its name 'x=print(1)'"),
        ("models/model.json", evil_key, "its in_spec"),
    ],
)
def test_an_archive_that_would_run_code_is_refused(
    archive: Path, tmp_path: Path, record: str, change: Callable[[Any], None], reason: str
):
    path = forge(archive, tmp_path / "forged.pt2", record, edit(change))
    with pytest.raises(InputError) as refusal:
        load_exported(path)
    assert f"{path} is refused: loading it would run code" in refusal.value.what
    assert reason in refusal.value.why


def test_guards_on_resampled_grids_are_arithmetic(archive: Path, tmp_path: Path):
    """What torch writes where a model scales its position embeddings by the size of the image."""
    guard = "math.ceil((((-0.5) + torch.sym_float(L['args'][0].size()[0])) / 16.0)) >= -9"

    def scaled(program: Any) -> None:
        program["guards_code"] = [guard]

    load_exported(forge(archive, tmp_path / "scaled.pt2", "models/model.json", edit(scaled)))
    for evil in ("torch.load('f')", "torch.hub.load('a', 'b')", "torch.sym_float.__globals__"):
        guard = evil
        with pytest.raises(InputError, match="would run code"):
            load_exported(forge(archive, tmp_path / "evil.pt2", "models/model.json", edit(scaled)))


def test_pickled_example_inputs_are_refused_unread(archive: Path, tmp_path: Path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(((Bomb(mark),), {}), buffer)
    path = forge(archive, tmp_path / "forged.pt2", "sample_inputs/model.pt", lambda _: buffer.getvalue())
    with pytest.raises(InputError, match="could not be checked"):
        load_exported(path)
    assert not mark.exists()


def test_a_legacy_archive_is_refused(tmp_path: Path):
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("version", "8.0")
        file.writestr("serialized_state_dict.pt", pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(InputError):
        load_exported(path)
    assert not (tmp_path / "mark").exists()


def test_no_file_and_no_archive(archive: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"no file .*none\.pt2"):
        load_exported(tmp_path / "none.pt2")
    (tmp_path / "cut.pt2").write_bytes(archive.read_bytes()[:3000])
    (tmp_path / "text.pt2").write_bytes(b"hello")
    with zipfile.ZipFile(tmp_path / "zip.pt2", "w") as file:
        file.writestr("folder/x", "y")
    for name in ("cut.pt2", "text.pt2", "zip.pt2"):
        with pytest.raises(InputError, match=f"{name} is no program of torch.export") as refusal:
            load_exported(tmp_path / name)
        assert ("after an interrupted download" if name == "cut.pt2" else "torch.export.save") in refusal.value.do
    (tmp_path / "onnx.pt2").write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(InputError, match=r"(?s)begins as an ONNX model does.*call it \.onnx"):
        load_exported(tmp_path / "onnx.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s0', positive=True, integer=True)",
        "Mul(Integer(4), FloorDiv(s0, 2))",
        "Float('0.5', precision=53)",
        "max(1, L['x'].size()[3] // 16) % 2 == 0",
        "s0*2 + u1",
        "-1",
    ],
)
def test_arithmetic_passes(text: str):
    assert _is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "Max('exec(1)')",
        "().__class__",
        "Symbol('s0', positive=eval)",
        "(lambda: 1)()",
        "f'{s0}'",
        "[s0 for s0 in L]",
        "L['x'].data_ptr()",
        "chr(101)",
        "s0 if",
    ],
)
def test_more_than_arithmetic_does_not(text: str):
    assert not _is_arithmetic(text)
