"""Models of the Hugging Face hub: the cache first, and a true reason where it is not enough. No test uses a network."""

from __future__ import annotations

import errno
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from jetvit.cli import main
from jetvit.commands.subject import made_from
from jetvit.models.hub import HubModel
from jetvit.models.load import load_model
from jetvit.models.loaded import LoadedModel
from jetvit.patterns.errors import InputError

hub: Any = pytest.importorskip("huggingface_hub")
errors: Any = pytest.importorskip("huggingface_hub.errors")
constants: Any = pytest.importorskip("huggingface_hub.constants")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some-org/some.model"
PROCESSOR = {"crop_size": {"height": 42, "width": 42}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


class Cache:
    """A cache folder as huggingface_hub writes it, with one repository, and a hub that serves files or an error."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.repository, self.model = root, root / "models--some-org--some.model", model
        self.served: set[str] = set()
        self.error: Exception | None = None
        self.asked: list[str] = []

    def fill(self, *names: str, commit: str = COMMIT, ref: str | None = "main") -> None:
        """Put files of the model into the cache."""
        snapshot = self.repository / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(self.model / name, snapshot / name)
        if ref is not None:
            (self.repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
            (self.repository / "refs" / ref).write_text(commit)

    def mark_absent(self, *names: str) -> None:
        """Record, as huggingface_hub does, that the hub lacks these files."""
        for name in names:
            path = self.repository / ".no_exist" / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def reach(self, url: str) -> None:
        self.asked.append(url.rpartition("/")[2])
        if self.error is not None:
            raise self.error

    def download(self, repository: str, name: str, *, revision: str, **options: Any) -> str:
        self.asked.append(name)
        if name not in self.served:
            self.mark_absent(name)
            raise errors.EntryNotFoundError(name)
        self.fill(name, ref=revision)
        return str(self.repository / "snapshots" / COMMIT / name)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hf_folder: Callable[..., Path]) -> Cache:
    model = hf_folder("Dinov2")
    (model / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    cache = Cache(tmp_path / "hub", model)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("jetvit.models.hub._reach", cache.reach)
    monkeypatch.setattr(hub, "hf_hub_download", cache.download)
    monkeypatch.chdir(tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return cache


def load(name: str = NAME, **options: Any) -> LoadedModel:
    return load_model(f"hf:{name}", **options)


def refusal(name: str = NAME, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        load(name, **options)
    return caught.value


def http_error(kind: str, status: int) -> Exception:
    """An error of the hub, whose constructor differs between releases."""
    error = getattr(errors, kind).__new__(getattr(errors, kind))
    Exception.__init__(error, f"{status} for https://huggingface.co/{NAME}/resolve/main/config.json (Request ID: 1)")
    error.response = SimpleNamespace(status_code=status, headers={})
    return error


def test_names() -> None:
    assert HubModel.parse("org/name") == HubModel("org/name")
    assert HubModel.parse("org/name.v1@refs/pr/3") == HubModel("org/name.v1", "refs/pr/3")
    for text in ("name", "", "./a/b", "../a", "/a/b", "~/a", "a/b/c", "a/b@", "a/b@../../x", "a--b/c", "a/b@c d"):
        assert HubModel.parse(text) is None


def test_a_complete_cache_is_used_without_asking_the_hub(cache: Cache) -> None:
    cache.fill("config.json", "model.safetensors", "preprocessor_config.json")
    loaded = load()
    assert isinstance(loaded.model, nn.Module)
    assert loaded.notes == [f"took {NAME} from the cache, commit {COMMIT[:12]}"]
    assert (loaded.input_size, loaded.mean, loaded.std) == ((42, 42), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert cache.asked == []


def test_a_cache_without_the_image_processor_says_so(cache: Cache) -> None:
    cache.fill("config.json", "model.safetensors")
    assert f"`hf download {NAME} preprocessor_config.json`" in load().notes[1]
    cache.mark_absent("preprocessor_config.json")
    assert len(load().notes) == 1


def test_shards(cache: Cache, hf_folder: Callable[..., Path]) -> None:
    cache.model = hf_folder("ViT", max_shard_size="5KB")
    shards = sorted(path.name for path in cache.model.glob("model-*.safetensors"))
    cache.fill("config.json", "model.safetensors.index.json", *shards[1:])
    constants.HF_HUB_OFFLINE = True
    assert refusal().what == f"{NAME} cannot be loaded: {shards[0]} is not in the cache"
    cache.fill(shards[0])
    assert isinstance(load().model, nn.Module)


def test_an_index_of_pickles_is_refused(cache: Cache) -> None:
    (cache.model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    cache.fill("config.json", "model.safetensors.index.json")
    assert "lists other files" in refusal().why


def test_weights_of_another_format_are_not_taken(cache: Cache) -> None:
    cache.fill("config.json")
    (cache.repository / "snapshots" / COMMIT / "pytorch_model.bin").write_bytes(b"pickle")
    constants.HF_HUB_OFFLINE = True
    assert refusal().what == f"{NAME} cannot be loaded: model.safetensors is not in the cache"
    cache.mark_absent("model.safetensors", "model.safetensors.index.json")
    assert refusal().what == f"{NAME} has no safetensors weights"
    assert load(model_args={"random": True}).random_weights


def test_offline(cache: Cache) -> None:
    constants.HF_HUB_OFFLINE = True
    error = refusal()
    assert error.what == f"{NAME} cannot be loaded: config.json, model.safetensors are not in the cache"
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in error.why
    assert f"there is no local folder {NAME}" in error.why
    assert f"`hf download {NAME}`" in error.do
    assert error.where == str(cache.root)
    assert cache.asked == []
    cache.fill("config.json")
    assert "model.safetensors is not in the cache" in refusal().what


def test_a_revision(cache: Cache) -> None:
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    cache.fill(*names, ref="v1/stable")
    constants.HF_HUB_OFFLINE = True
    assert f"took {NAME}@v1/stable from the cache" in load(f"{NAME}@v1/stable").notes[0]
    assert f"took {NAME}@{COMMIT} from the cache" in load(f"{NAME}@{COMMIT}").notes[0]
    assert "are not in the cache" in refusal().what  # there is no main
    assert f"`hf download {NAME} --revision other`" in refusal(f"{NAME}@other").do


def test_a_local_folder_of_the_name_comes_first(cache: Cache) -> None:
    cache.fill("config.json", "model.safetensors", "preprocessor_config.json")
    shutil.copytree(cache.model, NAME)
    assert load().notes == [
        f"took the local folder {NAME}, and not the hub's model of that name, which is hf:{NAME}@main"
    ]
    assert "from the cache" in load(f"{NAME}@main").notes[0]


def test_a_plan_records_the_name_of_the_hub_and_no_local_path(cache: Cache, tmp_path: Path) -> None:
    assert made_from(f"hf:{NAME}@v1", str(tmp_path))["model"] == f"hf:{NAME}@v1"
    shutil.copytree(cache.model, NAME)
    assert made_from(f"hf:{NAME}", str(tmp_path))["model"] == "hf:some.model"


def test_what_is_missing_is_downloaded(cache: Cache) -> None:
    cache.served = {"config.json", "model.safetensors", "preprocessor_config.json", "pytorch_model.bin", "modeling.py"}
    assert load().notes == [f"took {NAME} from the hub, commit {COMMIT[:12]}"]
    files = {path.name for path in (cache.repository / "snapshots" / COMMIT).iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    cache.asked.clear()
    assert "from the cache" in load().notes[0]
    assert cache.asked == []


def test_shards_are_downloaded(cache: Cache, hf_folder: Callable[..., Path]) -> None:
    cache.model = hf_folder("ViT", max_shard_size="5KB")
    cache.served = {path.name for path in cache.model.iterdir()}
    assert isinstance(load().model, nn.Module)
    assert "model-00001-of" in " ".join(cache.asked)
    shard = next(name for name in cache.served if name.startswith("model-00002"))
    shutil.rmtree(cache.root)
    cache.served.remove(shard)
    assert f"lists {shard}, which the repository does not have" in refusal().why


def test_only_the_configuration_is_downloaded_for_random_weights(cache: Cache) -> None:
    cache.served = {"config.json"}
    assert load(model_args={"random": True}).random_weights
    assert "model.safetensors" not in cache.asked


def test_a_repository_without_safetensors(cache: Cache) -> None:
    cache.served = {"config.json", "pytorch_model.bin"}
    error = refusal()
    assert error.what == f"{NAME} has no safetensors weights"
    assert "--model-arg random=true" in error.do
    assert "pytorch_model.bin" not in cache.asked


@pytest.mark.parametrize(
    ("kind", "status", "what", "do"),
    [
        ("GatedRepoError", 403, f"{NAME} is gated", "`hf auth login`"),
        ("RepositoryNotFoundError", 401, f"there is no model {NAME}", "check the name"),
        ("RevisionNotFoundError", 404, f"{NAME} has no revision main", "branch, a tag or a whole commit hash"),
        ("EntryNotFoundError", 404, f"{NAME} is no model of transformers", "timm:NAME"),
        ("HfHubHTTPError", 503, f"{NAME} cannot be loaded", f"`hf download {NAME}`"),
    ],
)
def test_what_the_hub_refuses(cache: Cache, kind: str, status: int, what: str, do: str) -> None:
    cache.error = http_error(kind, status)
    error = refusal()
    assert error.what.startswith(what)
    assert do in error.do
    assert "Request ID" not in str(error)
    assert ("HTTP status 503" in error.why) == (status == 503)


def caused_by(cause: Exception) -> Exception:
    error = errors.LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        (socket.gaierror(-3, "Temporary failure in name resolution"), "is not resolved: there is no network"),
        (ConnectionRefusedError(111, "Connection refused"), "refuses the connection"),
        (TimeoutError("timed out"), "does not answer within 10 seconds"),
        (ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED]"), "TLS certificate is not trusted"),
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (ConnectionError("strange"), "ConnectionError: strange"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_hub_that_cannot_be_reached(cache: Cache, cause: Exception, why: str, wrapped: bool) -> None:
    cache.error = caused_by(cause) if wrapped else cause
    error = refusal()
    assert error.what == f"{NAME} cannot be loaded: config.json, model.safetensors are not in the cache"
    assert why in error.why
    assert f"`hf download {NAME}`" in error.do
    assert cache.asked == ["config.json"]  # one attempt


def test_the_true_client_fails_at_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request of huggingface_hub itself, to a port where nothing listens."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to repeat the request"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [(2, 1, 6, "", ("127.0.0.1", 443))])
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert "refuses the connection" in refusal().why


def test_the_command_line_takes_the_size_of_the_processor(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    cache.fill("config.json", "model.safetensors", "preprocessor_config.json")
    assert main(["explain", f"hf:{NAME}"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"hf:{NAME}\ninput pixel_values [1, 3, 42, 42] float32\n")
    assert f"note: took {NAME} from the cache" in output.err
    assert main(["explain", f"hf:{NAME}", "--size", "28x56"]) == 0
    assert "[1, 3, 28, 56]" in capsys.readouterr().out
    cache.error = socket.gaierror(-3, "Temporary failure in name resolution")
    assert main(["explain", "hf:org/other"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: org/other cannot be loaded: config.json, model.safetensors are not"
    )
