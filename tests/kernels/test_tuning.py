"""Measured choices: the fastest one is taken, kept, and never taken from a file that cannot be trusted."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetvit.kernels import tuning
from jetvit.kernels.tuning import CannotMeasure, Choices, choose, record_choices, size_step


class Measure:
    """Latencies by name; counts how often each was asked for."""

    def __init__(self, **times: float | None):
        self.times = times
        self.asked: list[str] = []

    def __call__(self, candidate: str) -> float:
        self.asked.append(candidate)
        time = self.times[candidate]
        if time is None:
            raise RuntimeError("out of resources: shared memory")
        return time


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "device.json"


@given(times=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 100), min_size=1))
def test_the_fastest_is_taken(tmp_path_factory, times) -> None:
    choices = Choices(tmp_path_factory.mktemp("cache") / "device.json")
    assert times[choices.get("key", sorted(times), Measure(**times))] == min(times.values())


def test_nothing_is_measured_twice_not_even_by_another_process(path) -> None:
    measure = Measure(a=2.0, b=1.0)
    first = Choices(path)
    assert [first.get("key", ["a", "b"], measure) for _ in range(2)] == ["b", "b"]
    assert Choices(path).get("key", ["a", "b"], measure) == "b"
    assert measure.asked == ["a", "b"]


def test_two_processes_keep_each_other_s_measurements(path) -> None:
    one, other = Choices(path), Choices(path)
    one.get("first", ["a", "b"], Measure(a=1.0, b=2.0))
    other.get("second", ["a", "b"], Measure(a=2.0, b=1.0))
    again = Choices(path)
    assert (again.get("first", ["a", "b"], None), again.get("second", ["a", "b"], None)) == ("a", "b")
    # What the other one has measured since is read before anything is measured.
    assert one.get("second", ["a", "b"], Measure()) == "b"


def test_without_a_measure_the_first_is_taken_and_nothing_is_kept(path) -> None:
    assert Choices(path).get("key", ["a", "b"], None) == "a"
    assert not path.exists()


def test_a_candidate_that_cannot_run_is_left_out(path) -> None:
    assert Choices(path).get("key", ["a", "b"], Measure(a=None, b=1.0)) == "b"
    assert json.loads(path.read_text())["entries"]["key"]["ms"] == {"a": None, "b": 1.0}


def test_none_can_run(path) -> None:
    reason = "key: none of a, b can run on this device; the last: out of resources: shared memory"
    with pytest.raises(RuntimeError, match=reason) as caught:
        Choices(path).get("key", ["a", "b"], Measure(a=None, b=None))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_cannot_run_may_say_so_by_any_exception(path) -> None:
    # Triton's own (too much shared memory, a failing ptxas) are no RuntimeErrors.
    def measure(candidate: str) -> float:
        if candidate == "b":
            raise OutOfResources(200_000, 101_376, "shared memory")
        return 1.0

    OutOfResources = pytest.importorskip("triton.runtime.errors").OutOfResources
    assert Choices(path).get("key", ["a", "b"], measure) == "a"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), CannotMeasure("a size depends on data")])
def test_what_could_not_be_measured_is_not_kept(path, caplog, error) -> None:
    asked = []

    def measure(candidate: str) -> float:
        asked.append(candidate)
        if candidate == "b":
            raise error
        return 1.0

    choices = Choices(path)
    with caplog.at_level(logging.WARNING, logger=tuning.__name__):
        assert [choices.get("key", ["a", "b"], measure) for _ in range(2)] == ["a", "a"]
    assert asked == ["a", "b"]
    assert caplog.text.count("not measured, a is taken") == 1
    assert not path.exists()
    assert Choices(path).get("key", ["a", "b"], Measure(a=2.0, b=1.0)) == "b"


def test_the_file_can_be_read_by_others_and_nothing_is_left_beside_it(path) -> None:
    Choices(path).get("key", ["a", "b"], Measure(a=2.0, b=1.0))
    plain = path.parent / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(path.parent.iterdir()) == [path, plain]


def test_a_measurement_has_tensors_of_the_same_layout_and_of_its_own_memory() -> None:
    packed = torch.zeros(2, 5, 3, 4, 8)
    for tensor in (packed[:, :, 1], packed[:, 1:, 0, :1].expand(-1, -1, 4, -1), packed[:0, 0, 0]):
        drawn = tuning._random_like(tensor)
        assert (drawn.shape, drawn.stride(), drawn.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        assert drawn.isfinite().all()
        assert tensor.numel() == 0 or drawn.std() > 0
    assert not packed.any()


@pytest.mark.parametrize("capture_fails", [False, True])
def test_the_replay_of_a_graph_is_timed_and_else_the_call(monkeypatch, caplog, capture_fails) -> None:
    testing = pytest.importorskip("triton.testing")
    seen: list[str] = []

    def captured(call):
        if capture_fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: seen.append("replay")

    monkeypatch.setattr(tuning, "captured", captured)
    monkeypatch.setattr(testing, "do_bench", lambda timed, **_: timed() or 0.25)
    with caplog.at_level(logging.INFO, logger=tuning.__name__):
        assert tuning.latency_ms(lambda x, size: seen.append(f"call {x.shape[0]} {size}"), torch.zeros(3), 7) == 0.25
    assert seen == ["call 3 7", "call 3 7" if capture_fails else "replay"]
    assert ("not captured" in caplog.text) is capture_fails


def test_a_capture_without_memory_is_no_measurement(monkeypatch) -> None:
    def captured(call):
        raise torch.OutOfMemoryError("out of memory")

    pytest.importorskip("triton.testing")
    monkeypatch.setattr(tuning, "captured", captured)
    with pytest.raises(torch.OutOfMemoryError):
        tuning.latency_ms(lambda: None)


def test_other_candidates_are_measured_again(path) -> None:
    Choices(path).get("key", ["a", "b"], Measure(a=2.0, b=1.0))
    measure = Measure(a=2.0, b=1.0, c=0.5)
    assert Choices(path).get("key", ["a", "b", "c"], measure) == "c"
    assert measure.asked == ["a", "b", "c"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 0, "entries": {}}',
        '{"version": 1, "entries": {"key": {"choice": "b"}}}',
        '{"version": 1, "entries": {"key": ["b"]}}',
        '{"version": 1, "entries": {"key": {"choice": 7, "ms": {}}}}',
        '{"version": 1, "entries": 3}',
        b"\xff\xfe\x00",
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_broken_file_is_left_aside_and_said_so(path, content, caplog) -> None:
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with caplog.at_level(logging.WARNING, logger=tuning.__name__):
        assert Choices(path).get("key", ["a", "b"], Measure(a=1.0, b=2.0)) == "a"
    assert "device.json is left aside" in caplog.text
    assert Choices(path).get("key", ["a", "b"], None) == "a"


def test_an_entry_cannot_name_what_is_no_candidate(path) -> None:
    path.parent.mkdir()
    entry = {"choice": "rm -rf", "ms": {"a": 1.0, "b": 2.0}}
    path.write_text(json.dumps({"version": 1, "entries": {"key": entry}}))
    assert Choices(path).get("key", ["a", "b"], Measure(a=1.0, b=2.0)) == "a"


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("")
    choices = Choices(tmp_path / "file" / "device.json")
    with caplog.at_level(logging.WARNING, logger=tuning.__name__):
        assert choices.get("key", ["a", "b"], Measure(a=2.0, b=1.0)) == "b"
    assert choices.get("key", ["a", "b"], None) == "b"
    assert "kept for this process only" in caplog.text


def test_away_from_a_gpu_nothing_is_measured() -> None:
    assert choose("key", torch.device("cpu"), ["a", "b"], Measure()) == "a"


@given(size=st.integers(1, 2**40))
def test_a_step_is_a_factor_of_two(size) -> None:
    top = int(size_step(size).removeprefix("2^"))
    assert 2 ** (top - 1) <= size < 2**top


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"JETVIT_CACHE": "/there"}, "/there"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/jetvit"),
        ({"HOME": "/home/me"}, "/home/me/.cache/jetvit"),
        ({"HOME": "/home/me", "JETVIT_CACHE": "~/there"}, "/home/me/there"),
    ],
)
def test_the_file_is_named_after_the_device_and_torch(monkeypatch, variables, folder) -> None:
    for name in ("JETVIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    assert str(tuning._file("NVIDIA H100 80GB HBM3")) == f"{folder}/nvidia-h100-80gb-hbm3-torch-2.11.0.json"


def test_without_a_home_the_file_is_among_the_temporary_ones(monkeypatch, tmp_path) -> None:
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JETVIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tuning.Path, "expanduser", no_home)
    monkeypatch.setattr(tuning.tempfile, "tempdir", str(tmp_path))
    assert tuning._file("GPU").parent.parent == tmp_path


def test_what_was_chosen_can_be_recorded() -> None:
    def answer(key: str) -> str:
        return choose(key, torch.device("cpu"), ["flash", "math"], Measure())

    with record_choices() as outer:
        answer("a")
        with record_choices() as inner:
            answer("b")
        answer("c")
    answer("d")
    assert (outer, inner) == ({"a": "flash", "b": "flash", "c": "flash"}, {"b": "flash"})
