"""The file of whole runs: what is written is read back, and nothing damaged is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.cost_model.measuring.graph_operations import GraphOperations
from jetvit.cost_model.measuring.runs import WholeRun, append_runs, read_runs, runs_path
from jetvit.cost_model.measuring.table import checksum
from jetvit.cost_model.measuring.timing import Latency
from jetvit.patterns.errors import InputError
from tests.cost_model.tables import MACHINE, add, latencies, machines, operations, texts

OPERATIONS = GraphOperations(Counter({add(3): 2}), Counter({"aten.cat": 1}))
RUN = WholeRun(MACHINE, "a ViT", "F W8", "eager", OPERATIONS, Latency(2, 1, 3, 5))
counts = st.integers(1, 99)
runs = st.builds(
    WholeRun,
    machines,
    texts,
    texts,
    st.sampled_from(["eager", "compiled"]),
    st.builds(
        GraphOperations,
        st.dictionaries(operations(), counts, max_size=4).map(Counter),
        st.dictionaries(texts, counts, max_size=4).map(Counter),
    ),
    latencies(),
)


@given(written=st.lists(runs, max_size=4), split=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_round_trip(written: list[WholeRun], split: int, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("runs") / "t.runs.jsonl"
    append_runs(path, written[:split])
    append_runs(path, written[split:])
    assert read_runs(path) == written
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_damage_is_refused_by_line(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("runs") / "t.runs.jsonl"
    append_runs(path, [RUN, RUN])
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 2))
    byte = data.draw(st.integers(32, 126).filter(lambda value: value != whole[place]))
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    with pytest.raises(InputError, match=r"line [12]: no run of a whole model"):
        read_runs(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mode": "lazy"}, "mode is 'lazy'"),
        ({"schema": 9}, "its schema is 9"),
        ({"latency": {"median_ms": -1, "q25_ms": 1, "q75_ms": 1, "reps": 1}}, "median_ms is -1"),
        ({"operations": [[{"op": "spin"}, 1]]}, "missing"),
        ({"crc32": "00000000"}, "its checksum does not fit"),
    ],
)
def test_what_is_no_run_says_why(change: dict[str, object], why: str, tmp_path: Path):
    path = tmp_path / "t.runs.jsonl"
    append_runs(path, [RUN])
    record = json.loads(path.read_text()) | change
    if "crc32" not in change:
        record.pop("crc32")
        record["crc32"] = checksum(json.dumps(record))
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError) as error:
        read_runs(path)
    assert why in error.value.why


@pytest.mark.parametrize("text", ["{}\n", "[]\n", "\n", "not JSON\n", '{"schema": 1', "\udcff"])
def test_foreign_files(text: str, tmp_path: Path):
    path = tmp_path / "t.runs.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"t\.runs\.jsonl"):
        read_runs(path)
    with pytest.raises(InputError, match="cannot read"):
        read_runs(tmp_path / "none.runs.jsonl")


def test_an_unfinished_line_is_refused(tmp_path: Path):
    path = tmp_path / "t.runs.jsonl"
    append_runs(path, [RUN])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="line 1"):
        read_runs(path)


def test_beside_the_table():
    assert runs_path("a/b.csv") == Path("a/b.runs.jsonl")
