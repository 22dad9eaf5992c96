"""The latency table: nothing is lost, nothing is read that was not written, and every refusal names the line."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model.measuring import table
from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.table import COLUMNS, TableWriter, read_table
from jetvit.cost_model.measuring.timing import Latency
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS
from jetvit.patterns.errors import DiskFullError, InputError
from tests.cost_model.tables import GPU, MACHINE, NOW, add, machines, measurement, measurements


def write(path: Path, rows: list[Measurement], machine: Machine = MACHINE) -> Path:
    with TableWriter(path, machine) as writer:
        for row in rows:
            writer.append(row)
    return path


def resealed(line: str) -> str:
    """A row with the checksum that fits it."""
    text = line.rpartition(",")[0]
    return f"{text},{table.checksum(text)}"


def edited(line: str, **cells: str) -> str:
    values = dict(zip(COLUMNS, line.split(","), strict=True)) | cells
    return resealed(",".join(values.values()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table of three rows."""
    return write(tmp_path / "t.csv", [measurement(width) for width in (1, 2, 3)])


@given(machines, st.lists(measurements, max_size=4))
def test_what_is_written_is_read(machine: Machine, rows: list[Measurement]):
    with tempfile.TemporaryDirectory() as folder:
        rows = [replace(row, machine=machine) for row in rows]
        file = write(Path(folder, "t.csv"), rows, machine)
        assert read_table(file) == rows
        with TableWriter(file, machine) as writer:
            assert writer.measurements == rows
            assert all(writer.count(row.operation) for row in rows)


def test_columns_are_those_of_schema_2(path: Path):
    # Another set of columns is another schema.
    assert ",".join(COLUMNS) == (
        "schema,device,multiprocessors,driver,cuda,torch,triton,jetvit,op,dtype,batch,grid_h,grid_w,extra,heads,"
        "head_dim,rope,window_h,window_w,conv_size,feature_map,backend,inputs,outputs,config,median_ms,q25_ms,q75_ms,reps,"
        "time,crc32"
    )
    assert path.read_text().splitlines()[1] == (
        "2,Some CPU,2,,,2.13.0,3.9.0,0.1.0,add,float32,1,2,3,0,0,0,0,0,0,0,,,1,0,F.add,1.5,0.75,3.0,20,"
        "2026-11-22T21:00:00+00:00,41c67ad6"
    )


SCHEMA_1 = """\
schema,device,multiprocessors,driver,cuda,torch,triton,jetvit,op,dtype,batch,grid_h,grid_w,extra,heads,head_dim,rope,\
window_h,window_w,conv_size,backend,inputs,outputs,config,median_ms,q25_ms,q75_ms,reps,time,crc32
1,Some CPU,2,,,2.13.0,3.9.0,0.1.0,add,float32,1,2,3,0,0,0,0,0,0,0,,1,0,F.add,1.5,0.75,3.0,20,\
2026-11-22T21:00:00+00:00,8d9e5d06
"""


def linear(feature_map: str) -> Measurement:
    operation = Operation("linear", "float32", 1, 2, 3, heads=2, head_dim=8, feature_map=feature_map)
    return replace(measurement(1), operation=operation)


def test_a_table_of_schema_1_is_read_and_goes_on_as_it_is(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text(SCHEMA_1)
    assert read_table(path) == [measurement(1)]
    write(path, [measurement(2), linear("relu")])
    assert read_table(path) == [measurement(1), measurement(2), linear("relu")]
    assert path.read_text().startswith(SCHEMA_1)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"t\.csv has no column feature_map") as caught:
        write(path, [linear("hedgehog")])
    assert "schema 1, and linear float32 2x8 conv0 hedgehog, batch 1" in caught.value.why
    assert path.read_bytes() == before
    path.write_text(SCHEMA_1.replace("\n1,", "\n2,"))
    with pytest.raises(InputError, match="line 2") as caught:
        read_table(path)
    assert "its schema is '2'; the columns are those of 1" in caught.value.why


def test_feature_maps_are_told_apart(tmp_path: Path):
    rows = [linear(name) for name in FEATURE_MAPS]
    path = write(tmp_path / "t.csv", rows)
    assert read_table(path) == rows
    with TableWriter(path, MACHINE) as writer:
        assert [writer.count(row.operation) for row in rows] == [1, 1, 1]


@st.composite
def damages(draw: st.DrawFn) -> tuple[int, int, bytes]:
    """Where, how many bytes go, and what comes in their place."""
    return draw(st.integers(0, 1500)), draw(st.integers(0, 300)), draw(st.binary(max_size=3))


@given(damages())
def test_no_damage_makes_a_wrong_row(damage: tuple[int, int, bytes]):
    rows = [measurement(width, median_ms=width / 7) for width in range(1, 8)]
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder, "t.csv"), rows)
        content = file.read_bytes()
        at, gone, new = damage
        broken = content[:at] + new + content[at + gone :]
        file.write_bytes(broken)
        found, refusal = None, ""
        try:
            found = read_table(file)
        except InputError as error:
            refusal = error.what
        if found is None:
            assert refusal.startswith(f"{file}, line ")
            assert broken != content
        else:  # whole rows may be missing; none is new and none is another
            assert found == [row for row in rows if row in found]
            assert broken == content or len(found) < len(rows)


def test_every_single_flip_is_found(path: Path):
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in (0, 5):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            line = content[:at].count(b"\n") + 1
            # A lost line break makes one line of two; where the last one is lost, that line is not finished.
            with pytest.raises(InputError, match=f"t.csv, line {line}: "):
                read_table(path)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"schema": "1"}, "its schema is '1'"),
        ({"median_ms": "nan"}, "median_ms is nan"),
        ({"q75_ms": "inf"}, "q75_ms is inf"),
        ({"q25_ms": "0.0"}, "q25_ms is 0.0"),
        ({"median_ms": "-1.0"}, "median_ms is -1.0"),
        ({"median_ms": "fast"}, "median_ms is 'fast', which is no number"),
        ({"median_ms": "0.1"}, "the quartiles are out of order: 0.75, 0.1, 3.0 ms"),
        ({"reps": "0"}, "reps is 0"),
        ({"reps": "1.5"}, "reps is '1.5', which is no whole number"),
        ({"op": "conv"}, "op is 'conv', which is none of full"),
        ({"outputs": "4"}, "add has no outputs"),
        ({"time": "yesterday"}, "time is 'yesterday'"),
        ({"time": "2026-11-22T21:00:00+01:00"}, "which is not in UTC"),
        ({"time": "2026-11-22T21:00:00"}, "which is not in UTC"),
        ({"device": "Other CPU"}, "it is of Other CPU with 2 threads, and the first row of Some CPU with 2 threads"),
        ({"multiprocessors": "1"}, "it is of Some CPU with 1 thread,"),
        ({"device": ""}, "device is empty"),
        ({"multiprocessors": "0"}, "multiprocessors is 0"),
    ],
)
def test_an_impossible_row_is_refused_by_its_line(path: Path, cells: dict[str, str], words: str):
    lines = path.read_text().splitlines()
    lines[2] = edited(lines[2], **cells)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert caught.value.what == f"{path}, line 3: no row of a latency table"
    assert words in caught.value.why
    before = path.read_bytes()
    with pytest.raises(InputError, match="line 3"):
        TableWriter(path, MACHINE)
    assert path.read_bytes() == before


def test_other_columns_are_refused(path: Path):
    header, first, *_ = path.read_text().splitlines()
    for text, line in (
        (header.removesuffix(",crc32"), 1),
        (header.replace("op,", "", 1), 1),
        (f"{header}\n{first},more", 2),
        (f"{header}\n{first.partition(',')[2]}", 2),
        (f"{header}\n\n{first}", 2),
    ):
        path.write_text(text + "\n")
        with pytest.raises(InputError, match=f"t.csv, line {line}: "):
            read_table(path)
    path.write_text("")
    with pytest.raises(InputError, match=r"t\.csv, line 1: "):
        read_table(path)


def test_an_edited_row_is_refused(path: Path):
    path.write_text(path.read_text().replace(",1.5,", ",1.4,", 1))
    with pytest.raises(InputError, match="checksum"):
        read_table(path)


def test_a_row_can_be_taken_out(path: Path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    assert [row.operation.inputs for row in read_table(path)] == [1, 3]


def test_no_table(tmp_path: Path):
    with pytest.raises(InputError, match="no latency table"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot read"):
        read_table(tmp_path)


def test_wherever_writing_stopped_it_goes_on(path: Path, caplog: pytest.LogCaptureFixture):
    content = path.read_bytes()
    breaks = [at for at, byte in enumerate(content) if byte == ord("\n")]
    for at in sorted({*range(0, len(content), 37), *breaks, *(each + 1 for each in breaks[:-1])}):
        path.write_bytes(content[:at])
        kept = max(0, content[:at].count(b"\n") - 1)
        whole = content[:at].endswith(b"\n")
        if not whole:
            with pytest.raises(InputError, match="line"):
                read_table(path)
        caplog.clear()
        with TableWriter(path, MACHINE) as writer:
            assert [row.operation.inputs for row in writer.measurements] == [1, 2, 3][:kept]
            assert bool(caplog.messages) == (not whole and b"\n" in content[:at])
            for width in (1, 2, 3):
                if not writer.count(add(width)):
                    writer.append(measurement(width))
        assert path.read_bytes() == content


def test_what_is_no_table_is_left_alone(tmp_path: Path):
    file = tmp_path / "notes.csv"
    for text in ("my notes", "my notes\n", "schema,device\nx", "schema\n"):
        file.write_text(text)
        with pytest.raises(InputError, match="line 1"):
            TableWriter(file, MACHINE)
        assert file.read_text() == text


def test_the_table_of_another_device_is_left_alone(path: Path):
    before = path.read_bytes()
    for other in (GPU, replace(MACHINE, multiprocessors=1)):
        with pytest.raises(InputError, match="another device") as caught:
            TableWriter(path, other)
        assert str(other) in caught.value.why
    assert path.read_bytes() == before
    with TableWriter(path, MACHINE) as writer, pytest.raises(ValueError, match="a measurement of NVIDIA H100"):
        writer.append(measurement(9, machine=GPU))


def test_paths_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(InputError, match="mkdir -p"):
        TableWriter(tmp_path / "none" / "t.csv", MACHINE)
    with pytest.raises(InputError, match="no regular file"):
        TableWriter(tmp_path, MACHINE)


def test_one_writer_at_a_time(path: Path):
    with TableWriter(path, MACHINE):
        with pytest.raises(InputError, match="another run writes to it"):
            TableWriter(path, MACHINE)
        assert len(read_table(path)) == 3
    TableWriter(path, MACHINE).close()


def test_a_row_that_cannot_be_written_leaves_none_of_it(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = path.read_bytes()
    with TableWriter(path, MACHINE) as writer:
        real = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: real(file, data[:10]))
            patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(DiskFullError, match="No space"):
                writer.append(measurement(4))
        assert not writer.count(add(4))
        assert path.read_bytes() == before
        writer.append(measurement(4))
    assert len(read_table(path)) == 4


def test_versions_tell_measurements_apart(path: Path):
    later = replace(MACHINE, torch="2.14.0")
    with TableWriter(path, later) as writer:
        assert not writer.count(add(1))
        writer.append(measurement(1, machine=later))
    assert len(read_table(path)) == 4


def test_repeated_measurements_stand_beside_each_other(path: Path):
    write(path, [measurement(2, median_ms=9.0), measurement(2, median_ms=7.0)])
    assert len(read_table(path)) == 5
    with TableWriter(path, MACHINE) as writer:
        assert [writer.count(add(width)) for width in (1, 2, 9)] == [1, 3, 0]


def test_file_names():
    assert GPU.file_name == "nvidia-h100-80gb-hbm3.csv"
    assert replace(MACHINE, device="AMD EPYC (TM) 9/ä").file_name == "amd-epyc-tm-9-threads-2.csv"


@pytest.mark.parametrize("config", ["a\nb", "\r", "\0", "\u2028"])
def test_text_that_breaks_lines_is_refused(config: str):
    with pytest.raises(ValueError, match="cannot be printed"):
        Measurement(MACHINE, add(1), Latency(1.0, 1.0, 1.0, 1), config, NOW)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_loses_at_most_the_row_in_flight(tmp_path: Path):
    """Writers that are killed one after another finish the table together; what was told to be on the disk is there."""
    path, told, total = tmp_path / "t.csv", tmp_path / "told", 3000
    moments = random.Random(0)
    for turn in range(12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fork beside threads: the child only writes
            child = os.fork()
        if child == 0:
            try:
                with TableWriter(path, MACHINE) as writer, told.open("ab", buffering=0) as promises:
                    for width in range(1, total):
                        if not writer.count(add(width)):
                            writer.append(measurement(width))
                            promises.write(f"{width}\n".encode())
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0.001, 0.08) * (turn + 1) ** 0.5)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        promised = [int(line) for line in told.read_text().split()] if told.exists() else []
        with TableWriter(path, MACHINE) as writer:  # mends what the kill left
            widths = [row.operation.inputs for row in writer.measurements]
        assert widths == list(range(1, len(widths) + 1))
        # The promise itself may have been killed on its way.
        assert len(promised) <= len(widths) <= len(promised) + 1 + turn
    assert len(widths) > 20
