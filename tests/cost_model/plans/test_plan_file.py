"""Reading whatever a stranger wrote, and writing so that a crash leaves the old plan or the new one."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import torch as safetensors_torch

from jetvit.cost_model import Choice, Fingerprint, FrontPoint, Measured, Plan, SitePlan, SiteShape
from jetvit.cost_model.plans import plan_file
from jetvit.kernels.linear_attention.op import CONV_SIZES
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS
from jetvit.patterns.errors import PlanError
from tests.cost_model.strategies import plans

FINGERPRINT = Fingerprint((SiteShape("blocks.0.attn", 6, 64, {"packed": (1152, 384)}, 5, "dynamic", "half"),))
OLD = Plan(
    sites=(
        SitePlan(
            "blocks.0.attn",
            Choice("linear", conv_size=3),
            why="drift 0.02 ≤ 0.05",
            drift=0.02,
            latency_ms=1.5,
            measured=(Measured(Choice("window", window=(16, 16)), 0.01, 2.5), Measured(Choice("full"), 0.0, 4.0)),
        ),
    ),
    fingerprint=FINGERPRINT,
    provenance={"jetvit": "0.1.0", "images": 16, "sizes": [1, 2]},
    size=(224, 224),
    weights={"blocks.0.attn.qkv.weight": torch.arange(12.0).reshape(3, 4)},
    base_samples={"blocks.0.attn.qkv.weight": torch.ones(12)},
    base={"blocks.0.attn.proj.weight": (0.016, 0.02)},
    front=(FrontPoint(1, 0.02, 3.0),),
)
NEW = Plan(
    sites=(SitePlan("blocks.0.attn", Choice("window", window=(8, 8))),),
    fingerprint=FINGERPRINT,
    weights={"blocks.0.attn.qkv.weight": torch.ones(5)},
)
TRAINING_FREE = Plan(sites=NEW.sites, fingerprint=FINGERPRINT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    OLD.save(tmp_path / "plan")
    return tmp_path / "plan"


def rewrite(folder: Path, change: Callable[[Any], None]) -> None:
    document = json.loads((folder / "plan.json").read_text())
    change(document)
    (folder / "plan.json").write_text(json.dumps(document))


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(path: Path | str) -> PlanError:
    with pytest.raises(PlanError) as error:
        Plan.load(path)
    assert error.value.do
    return error.value


# --- What is written ---------------------------------------------------------------------------------------------


def test_files(folder: Path, tmp_path: Path):
    assert listing(folder) == ["plan.json", "weights.safetensors"]
    TRAINING_FREE.save(tmp_path / "free")
    assert listing(tmp_path / "free") == ["plan.json"]


def test_a_plan_is_loaded_from_its_folder_or_its_json(folder: Path):
    assert Plan.load(folder) == Plan.load(str(folder)) == Plan.load(folder / "plan.json") == OLD


def test_the_same_plan_is_the_same_bytes(folder: Path, tmp_path: Path):
    provenance = dict(reversed(OLD.provenance.items()))
    Plan(**{**vars(OLD), "provenance": provenance}).save(tmp_path / "again")
    for name in ("plan.json", "weights.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_json_is_readable(folder: Path):
    lines = (folder / "plan.json").read_text(encoding="utf-8").splitlines()
    assert '      "choice": {"kind": "linear", "conv_size": 3, "eps": 1e-06, "feature_map": "relu"},' in lines
    assert '      "why": "drift 0.02 ≤ 0.05",' in lines
    assert max(map(len, lines)) <= 120


@settings(max_examples=30, deadline=None)
@given(plans())
def test_pretty_is_json(plan: Plan):
    document = plan._to_json()
    assert json.loads(plan_file.pretty(document)) == document


def test_files_can_be_read_by_whom_the_umask_lets(folder: Path):
    modes = {(folder / name).stat().st_mode & 0o777 for name in ("plan.json", "weights.safetensors")}
    assert len(modes) == 1


def test_views_and_tied_weights_are_saved(tmp_path: Path):
    matrix = torch.randn(4, 6)
    plan = Plan((), FINGERPRINT, weights={"a": matrix, "b": matrix, "c": matrix.t(), "d": matrix[:, ::2]})
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan


# --- Saving over a plan, and crashes -----------------------------------------------------------------------------


@pytest.mark.parametrize("new", [NEW, TRAINING_FREE, OLD])
def test_saving_over_a_plan(folder: Path, new: Plan):
    (folder / "notes.txt").write_text("mine")
    new.save(folder)
    assert Plan.load(folder) == new
    assert listing(folder) == ["notes.txt", "plan.json"] + (["weights.safetensors"] if new.weights else [])


def test_saving_over_something_broken(folder: Path):
    (folder / "plan.json").write_text("{")
    (folder / "weights.safetensors.next").write_text("left by a crash")
    NEW.save(folder)
    assert Plan.load(folder) == NEW
    assert listing(folder) == ["plan.json", "weights.safetensors"]


class Crash(BaseException):
    """The process ends: nothing catches this."""


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, BaseException, bool], None]]:
    """Make the n-th step that touches the disk raise, before or after it is done."""
    real = {name: getattr(os, name) for name in ("replace", "unlink", "fsync")}

    def arm(step: int, error: BaseException, done: bool) -> None:
        left = [step]

        def failing(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0 and (left[0] == -1 or isinstance(error, Crash)):
                    if done and left[0] == -1:
                        real[name](*args, **kwargs)
                    raise error
                return real[name](*args, **kwargs)

            return call

        for name in real:
            monkeypatch.setattr(os, name, failing(name))

    yield arm
    monkeypatch.undo()


STEPS = 9


@pytest.mark.parametrize("new", [NEW, TRAINING_FREE])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("error", [Crash(), OSError(28, "No space left on device")], ids=["crash", "full"])
@pytest.mark.parametrize("step", range(STEPS))
def test_a_crash_leaves_the_old_plan_or_the_new(
    folder: Path, crash_at, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException, done: bool, new: Plan
):
    crash_at(step, error, done)
    failed = False
    try:
        new.save(folder)
    except (Crash, PlanError):
        failed = True
    monkeypatch.undo()
    there = Plan.load(folder)
    assert there in (OLD, new)
    assert failed or there == new
    # And the next save is not held up by what was left.
    TRAINING_FREE.save(folder)
    assert Plan.load(folder) == TRAINING_FREE
    NEW.save(folder)
    assert Plan.load(folder) == NEW
    assert listing(folder) == ["plan.json", "weights.safetensors"]


def test_every_step_of_a_save_was_crashed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    spies = [mock.Mock(wraps=getattr(os, name)) for name in ("replace", "unlink", "fsync")]
    for name, spy in zip(("replace", "unlink", "fsync"), spies, strict=True):
        monkeypatch.setattr(os, name, spy)
    NEW.save(folder)
    assert 5 < sum(spy.call_count for spy in spies) < STEPS


def test_a_crash_after_the_commit_is_finished_by_the_next_save(folder: Path, crash_at, monkeypatch):
    old_weights = (folder / "weights.safetensors").read_bytes()
    NEW.save(folder)
    (folder / "weights.safetensors").rename(folder / "weights.safetensors.next")
    (folder / "weights.safetensors").write_bytes(old_weights)
    assert Plan.load(folder) == NEW
    crash_at(2, Crash(), False)
    with pytest.raises(Crash):
        OLD.save(folder)
    monkeypatch.undo()
    assert Plan.load(folder) == NEW


def test_a_failed_save_leaves_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PlanError, match="No space left") as error:
        NEW.save(folder)
    assert error.value.where == str(folder)
    assert error.value.do.startswith("free space")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(PlanError):
        NEW.save(folder.parent / "fresh")
    assert not (folder.parent / "fresh").exists()


def test_a_failed_serialisation_touches_nothing(folder: Path):
    broken = Plan((), FINGERPRINT, weights={"w": torch.zeros(2, dtype=torch.complex128)})
    with pytest.raises(PlanError, match="safetensors does not take them") as error:
        broken.save(folder)
    assert "dtype" in error.value.do
    with pytest.raises(PlanError, match="safetensors does not take them"):
        Plan((), FINGERPRINT, weights={"w": torch.zeros(2, device="meta")}).save(folder)
    assert Plan.load(folder) == OLD


def test_a_file_where_the_folder_should_be(tmp_path: Path):
    (tmp_path / "plan").write_text("mine")
    with pytest.raises(PlanError, match="cannot be saved") as error:
        OLD.save(tmp_path / "plan")
    assert error.value.where == str(tmp_path / "plan")
    assert (tmp_path / "plan").read_text() == "mine"


def test_saving_does_not_write_through_links(folder: Path, tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    for name in ("plan.json", "plan.json.next", "weights.safetensors", "weights.safetensors.next"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "precious")
    NEW.save(folder)
    assert (tmp_path / "precious").read_text() == "mine"
    assert Plan.load(folder) == NEW
    assert not any(path.is_symlink() for path in folder.iterdir())


# --- Files that are not there, or not what they should be --------------------------------------------------------


def test_a_missing_plan(tmp_path: Path):
    error = refusal(tmp_path / "nowhere")
    assert error.what == "there is no plan"
    assert error.where == str(tmp_path / "nowhere")
    assert "Plan.save" in error.do
    assert refusal(tmp_path).where == str(tmp_path / "plan.json")


def test_a_name_that_no_file_can_have():
    assert refusal("\0").what
    assert refusal("x" * 5000).what


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value: line 1 column 1"),
        (b'{"sites": [', "line 1 column"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"sites": [], "sites": []}', "the key 'sites' stands twice"),
        (b'{"size": NaN}', "NaN is no JSON number"),
        (b'{"size": -Infinity}', "-Infinity is no JSON number"),
        (b"1" * 5000, "digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_json(folder: Path, content: bytes, why: str):
    (folder / "plan.json").write_bytes(content)
    error = refusal(folder)
    assert error.what == "the plan cannot be read"
    assert why in error.why
    assert error.where == str(folder / "plan.json")
    assert error.do == "copy the plan again, or make a new one"


@pytest.mark.parametrize("depth", [10, 100, 300, 500, 800, 950])
def test_a_deep_provenance_is_loaded_or_refused(folder: Path, depth: int):
    rewrite(folder, lambda document: document["provenance"].update(x=None))
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text.replace("null", "[" * depth + "]" * depth, 1))
    if depth == 10:
        assert "x" in Plan.load(folder).provenance
    elif depth == 950:
        assert "nested too deeply" in refusal(folder).why
    else:
        loads_or_refuses(folder)


def test_a_file_that_is_too_large(folder: Path):
    with (folder / "plan.json").open("ab") as file:
        file.truncate(65 << 20)
    assert refusal(folder).why == "it is larger than 64 MiB"


@pytest.mark.parametrize(
    ("change", "where", "why"),
    [
        (lambda d: d.pop("sites"), "$", "'sites' is a required property"),
        (lambda d: d.update(extra=1), "$", "'extra' was unexpected"),
        (lambda d: d.update(schema_version=0), "$.schema_version", "1 was expected"),
        (lambda d: d.update(schema_version="1"), "$.schema_version", "1 was expected"),
        (lambda d: d.update(sites={}), "$.sites", "is not of type 'array'"),
        (lambda d: d["sites"].append(None), "$.sites[1]", "None is not of type 'object'"),
        (lambda d: d["sites"][0].update(name=3), "$.sites[0].name", "3 is not of type 'string'"),
        (lambda d: d["sites"][0].update(drift="0.1"), "$.sites[0].drift", "is not of type"),
        (lambda d: d["sites"][0].update(drift=10**400), "$.sites[0].drift", "is not of type"),
        (lambda d: d["sites"][0].update(drift=True), "$.sites[0].drift", "True is not of type"),
        (lambda d: d["sites"][0].update(latency_ms=-1), "$.sites[0].latency_ms", "less than the minimum"),
        (lambda d: d["sites"][0]["choice"].update(kind="sparse"), "$.sites[0].choice.kind", "'sparse' is not one of"),
        (lambda d: d["sites"][0]["choice"].pop("kind"), "$.sites[0].choice", "'kind' is a required property"),
        (lambda d: d["sites"][0]["choice"].pop("eps"), "$.sites[0].choice", "'eps' is a required property"),
        (lambda d: d["sites"][0]["choice"].update(window=[1, 1]), "$.sites[0].choice", "'window' was unexpected"),
        (lambda d: d["sites"][0]["choice"].update(conv_size=4), "$.sites[0].choice.conv_size", "4 is not one of"),
        (lambda d: d["sites"][0]["choice"].update(conv_size=1e300), "$.sites[0].choice.conv_size", "not one of"),
        (lambda d: d["sites"][0]["choice"].update(feature_map="exp"), "$.sites[0].choice.feature_map", "not one of"),
        (lambda d: d["sites"][0]["choice"].update(eps=0), "$.sites[0].choice.eps", "minimum"),
        (
            lambda d: d["sites"][0]["measured"][0]["choice"].update(window=[16, 10**30]),
            "$.sites[0].measured[0].choice.window[1]",
            "is not of type 'integer'",
        ),
        (lambda d: d["fingerprint"]["sites"][0].update(rope=""), "$.fingerprint.sites[0].rope", "not valid under any"),
        (lambda d: d["fingerprint"]["sites"][0]["projections"].update(up=[1, 1]), "$.fingerprint.sites[0]", "'up'"),
        (lambda d: d["fingerprint"]["sites"][0].update(extra_before=-1), "$.fingerprint.sites[0].extra_before", "-1"),
        (lambda d: d["weights"].update(file="../../x"), "$.weights", "'file' was unexpected"),
        (lambda d: d["weights"].update(sha256="../../x"), "$.weights", "'../../x' does not match"),
        (lambda d: d["provenance"].update({"\x1b[2J": 1}), "$.provenance", "does not match"),
    ],
)
def test_a_document_that_is_not_valid(folder: Path, change: Callable[[Any], None], where: str, why: str):
    rewrite(folder, change)
    error = refusal(folder)
    assert error.what == "the plan is not valid"
    assert error.where.startswith(f"{folder / 'plan.json'}, {where}")
    assert why in error.why
    assert len(error.why) < 250
    assert error.do == "correct that place, or make the plan again"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 400, "[]", "true"])
def test_a_number_that_is_none(folder: Path, number: str):
    text = (folder / "plan.json").read_text(encoding="utf-8")
    (folder / "plan.json").write_text(text.replace('"drift": 0.02', f'"drift": {number}', 1), encoding="utf-8")
    error = refusal(folder)
    assert "is not of type" in error.why
    assert error.where == f"{folder / 'plan.json'}, $.sites[0].drift"


def test_the_schema_knows_what_the_operator_takes():
    linear = plan_file._validator().schema["$defs"]["choice"]["allOf"][2]["then"]["properties"]
    assert linear["conv_size"]["enum"] == list(CONV_SIZES)
    assert linear["feature_map"]["enum"] == list(FEATURE_MAPS)


def test_a_site_twice_or_unknown_names_the_file(folder: Path):
    rewrite(folder, lambda d: d["sites"].append(d["sites"][0]))
    error = refusal(folder)
    assert "twice" in error.what
    assert error.where == f"{folder / 'plan.json'}, site blocks.0.attn"
    rewrite(folder, lambda d: d.update(sites=[d["sites"][0] | {"name": "other"}]))
    assert "not in its fingerprint" in refusal(folder).what


def test_a_newer_plan_asks_for_an_upgrade(folder: Path):
    rewrite(folder, lambda document: document.update(schema_version=2, news={}))
    error = refusal(folder)
    assert "newer jetvit" in error.what
    assert "2" in error.why
    assert error.where == f"{folder / 'plan.json'}, $.schema_version"
    assert error.do == "upgrade jetvit"


def test_whole_numbers_may_be_written_as_floats(folder: Path):
    def change(document: Any) -> None:
        document["sites"][0]["choice"]["conv_size"] = 3.0
        document["fingerprint"]["sites"][0]["extra_before"] = 5.0
        document["size"] = [224.0, 224.0]

    rewrite(folder, change)
    plan = Plan.load(folder)
    assert plan == OLD
    assert plan.digest() == OLD.digest()
    assert isinstance(plan.fingerprint.sites[0].extra_before, int)


# --- Weights -----------------------------------------------------------------------------------------------------


def test_missing_weights(folder: Path):
    (folder / "weights.safetensors").unlink()
    error = refusal(folder)
    assert error.what == "the weights of the plan are missing"
    assert error.where == str(folder / "weights.safetensors")
    assert "whole folder" in error.do


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("change", [cut, flip, lambda data: b"", lambda data: data + b"\0"])
def test_other_weights(folder: Path, change: Callable[[bytes], bytes]):
    file = folder / "weights.safetensors"
    file.write_bytes(change(file.read_bytes()))
    error = refusal(folder)
    assert error.what == "the weights are not those that the plan was saved with"
    assert error.where == f"{file}, $.weights.sha256"
    assert "again" in error.do


def forge(folder: Path, data: bytes) -> None:
    """Weights that the hash in plan.json vouches for."""
    (folder / "weights.safetensors").write_bytes(data)
    sha256 = plan_file._sha256(folder / "weights.safetensors")
    rewrite(folder, lambda document: document.update(weights={"sha256": sha256}))


HEADER = b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        b"\xff" * 100,
        (1 << 60).to_bytes(8, "little") + b"{}",
        len(HEADER).to_bytes(8, "little") + HEADER,
    ],
)
def test_forged_weights(folder: Path, data: bytes):
    forge(folder, data)
    error = refusal(folder)
    assert error.what == "the weights of the plan cannot be read"
    assert error.where == str(folder / "weights.safetensors")


def test_forged_samples(folder: Path):
    forge(folder, safetensors_torch.save({"w": torch.zeros(1), "base_samples/w": torch.zeros(2, 2)}))
    error = refusal(folder)
    assert "not a row of fp32" in error.what
    assert error.where == f"{folder / 'plan.json'}, base_samples/w"


def test_weights_that_the_plan_does_not_name_are_not_read(folder: Path):
    rewrite(folder, lambda document: document.update(weights=None))
    (folder / "weights.safetensors").write_bytes(b"anything")
    assert Plan.load(folder).weights == {}


# --- Links and things that are no files --------------------------------------------------------------------------


def test_links_and_pipes_instead_of_files(folder: Path):
    weights = folder / "weights.safetensors"
    for target in ("/dev/zero", str(folder), str(weights), str(folder / "nothing")):
        weights.unlink()
        weights.symlink_to(target)
        assert "weights" in refusal(folder).what
    weights.unlink()
    os.mkfifo(weights)
    assert "weights" in refusal(folder).what

    plan = folder / "plan.json"
    for target in ("/dev/zero", str(folder), str(plan), str(folder / "nothing")):
        plan.unlink()
        plan.symlink_to(target)
        assert refusal(folder).where == str(plan)
    plan.unlink()
    os.mkfifo(plan)
    assert "no regular file" in refusal(folder).why


def test_a_linked_file_of_other_content_is_refused_without_telling_it(folder: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("hunter2")
    for name in ("weights.safetensors", "plan.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret")
        assert "hunter2" not in str(refusal(folder))


def test_links_to_the_right_content_are_followed(folder: Path, tmp_path: Path):
    # Download caches keep the files of a snapshot as links.
    (folder / "weights.safetensors").rename(tmp_path / "blob")
    (folder / "weights.safetensors").symlink_to(tmp_path / "blob")
    assert Plan.load(folder) == OLD


# --- Anything at all ---------------------------------------------------------------------------------------------

fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def loads_or_refuses(folder: Path, checked: bool = True) -> None:
    try:
        plan = Plan.load(folder)
    except PlanError:
        assert str(folder) in refusal(folder).where
        return
    if checked:  # what was read is a valid plan: it can be written and read again
        plan.save(folder / "again")
        assert Plan.load(folder / "again") == plan


@fuzz
@given(st.data())
def test_any_byte_changed(folder: Path, data: st.DataObject):
    TRAINING_FREE.save(folder)
    text = bytearray((folder / "plan.json").read_bytes())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    (folder / "plan.json").write_bytes(text)
    loads_or_refuses(folder)


@fuzz
@given(st.integers(0, 10_000))
def test_cut_off_anywhere(folder: Path, end: int):
    TRAINING_FREE.save(folder)
    text = (folder / "plan.json").read_bytes()
    (folder / "plan.json").write_bytes(text[: end % len(text)])
    loads_or_refuses(folder)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


OLD_DOCUMENT = OLD._to_json() | {"weights": {"sha256": "0" * 64}}
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**25, -(10**400), 1e999, -0.0, 1e308, float("nan"), "dynamic", "full", "../x", "\ud800"])
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=[True, False], ids=["jsonschema", "without jsonschema"])
def with_schema(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether jsonschema can be imported."""
    if not request.param:
        for name in ("jsonschema", "jsonschema.exceptions", "jsonschema.validators"):
            monkeypatch.setitem(sys.modules, name, None)
    return request.param


def test_a_machine_without_jsonschema(folder: Path, with_schema: bool, caplog: pytest.LogCaptureFixture):
    """A GPU machine may have torch and little else: the plan is read there, and not checked as well."""
    assert Plan.load(folder) == OLD
    assert with_schema == ("jsonschema is not installed" not in caplog.text)
    rewrite(folder, lambda document: document.pop("sites"))
    assert ("'sites' is a required property" if with_schema else "KeyError: 'sites'") in refusal(folder).why


@fuzz
@given(st.sampled_from(list(places(OLD_DOCUMENT))[1:]), json_values, st.booleans())
def test_any_field_changed(folder: Path, with_schema: bool, place: tuple[Any, ...], value: Any, remove: bool):
    OLD.save(folder)
    document = copy.deepcopy(json.loads((folder / "plan.json").read_text()))
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    if remove:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    (folder / "plan.json").write_text(json.dumps(document), encoding="utf-8")
    loads_or_refuses(folder, checked=with_schema)


def test_a_number_that_no_float_holds_is_refused(folder: Path, with_schema: bool):
    def change(document: dict[str, Any]) -> None:
        document["base"] = {"blocks.0.attn.proj.weight": [10**400, 1.0]}

    OLD.save(folder)
    rewrite(folder, change)
    assert refusal(folder)


@fuzz
@given(json_values)
def test_anything_at_all(folder: Path, value: Any):
    (folder / "plan.json").write_text(json.dumps(value), encoding="utf-8")
    refusal(folder)
