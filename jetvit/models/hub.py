"""Models of the Hugging Face hub: their files from the local cache, downloaded where the cache lacks them.

The hub is not asked for anything that the cache holds. Weights are safetensors alone, and no code is downloaded.
"""

from __future__ import annotations

import errno
import importlib
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jetvit.models.loaded import import_package, reason
from jetvit.models.weights import read_shards
from jetvit.passes.graph.source_lines import causes
from jetvit.patterns.errors import InputError

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TIMEOUT_S = 10
"""For the first answer of the hub."""
_NAME = r"[A-Za-z0-9_][\w.-]*"


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub at a revision: a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubModel | None:
        """Read ORG/NAME or ORG/NAME@REVISION; None for any other text."""
        match = re.fullmatch(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9_][\w./-]*))?", text)
        if match is None or ".." in text or "--" in match[1]:
            return None
        return cls(match[1], match[2] or "main")

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"

    def folder(self, *, weights: bool) -> tuple[Path, list[str]]:
        """Return the folder in the cache with the files of the model, and notes; download what is missing.

        Args:
            weights: get the weights too.
        Raises:
            InputError: the repository, the revision or a file is missing or not accessible, or cannot be downloaded.
        """
        missing = self._missing(weights)
        source = "the cache"
        if missing:
            self._download(missing, weights)
            source = "the hub"
            if missing := self._missing(weights):
                self._refuse("the download ended without an error, and the cache lacks files", missing)
        config = self._cached(CONFIG)
        assert isinstance(config, str)
        folder = Path(config).parent
        notes = [f"took {self} from {source}, commit {folder.name[:12]}"]
        states = [self._cached(name) for name in PROCESSORS]
        if states[0] is None and not isinstance(states[1], str):
            notes.append(
                f"the cache does not hold {PROCESSORS[0]} of {self}, so that the image size and the normalisation of "
                f"its processor are not known: download it with `{self._command()} {PROCESSORS[0]}`"
            )
        return folder, notes

    def _cached(self, name: str) -> Any:
        """The path of a file in the cache; None where it is not there, another object where the hub lacks it too."""
        return _hub().try_to_load_from_cache(self.repository, name, revision=self.revision)

    def _missing(self, weights: bool) -> list[str]:
        """The files that the cache lacks."""
        missing = [] if isinstance(self._cached(CONFIG), str) else [CONFIG]
        if not weights or isinstance(self._cached(WEIGHTS), str):
            return missing
        index = self._cached(INDEX)
        if isinstance(index, str):
            return missing + [name for name in self._shards(index) if not isinstance(self._cached(name), str)]
        if index is not None and self._cached(WEIGHTS) is not None:
            raise self._without_safetensors()
        return [*missing, WEIGHTS]

    def _shards(self, index: str) -> list[str]:
        """The files that an index of shards lists; all are safetensors."""
        shards = read_shards(Path(index))
        if any(not shard.endswith(".safetensors") for shard in shards):
            raise self._without_safetensors(f"its {INDEX} lists other files")
        return shards

    def _download(self, missing: list[str], weights: bool) -> None:
        hub = _hub()
        if _constants().HF_HUB_OFFLINE:
            self._refuse("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so that nothing is downloaded", missing)
        try:
            _reach(hub.hf_hub_url(self.repository, CONFIG, revision=self.revision))
            self._get(CONFIG)  # again where it is in the cache, for the branch may be at another commit by now
            for name in PROCESSORS:
                if self._has(name):
                    break
            if weights and not self._has(WEIGHTS):
                if not self._has(INDEX):
                    raise self._without_safetensors()
                index = self._cached(INDEX)
                for shard in self._shards(index) if isinstance(index, str) else ():
                    if not self._has(shard):
                        raise InputError(
                            f"{self} lacks weights", why=f"{INDEX} lists {shard}, which the repository does not have"
                        )
        except InputError:
            raise
        except Exception as error:  # of huggingface_hub, of its HTTP library, of the system
            raise self._explained(error, missing) from error

    def _get(self, name: str) -> None:
        _hub().hf_hub_download(self.repository, name, revision=self.revision, etag_timeout=TIMEOUT_S)

    def _has(self, name: str) -> bool:
        """Download a file; False where the repository has none of that name."""
        errors = _errors()
        try:
            self._get(name)
        except errors.LocalEntryNotFoundError:  # a subclass of the next: the hub could not be asked
            raise
        except errors.EntryNotFoundError:
            return False
        return True

    def _explained(self, error: Exception, missing: list[str]) -> InputError:
        errors = _errors()
        page = f"{_constants().ENDPOINT}/{self.repository}"
        if isinstance(error, errors.GatedRepoError):
            return InputError(
                f"{self} is gated",
                why="its owner gives access on request, and you are not logged in with an account that has it",
                where=page,
                do=f"accept its terms on that page, run `hf auth login`, then `{self._command()}`",
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return InputError(
                f"there is no model {self.repository}",
                why="the hub has none of that name that you may read, and there is no local folder of that name",
                where=page,
                do="check the name; for a private model run `hf auth login` first",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return InputError(
                f"{self.repository} has no revision {self.revision}",
                where=page,
                do="name a branch, a tag or a whole commit hash that the page lists",
            )
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return InputError(
                f"{self} is no model of transformers",
                why=f"the repository has no {CONFIG}",
                where=page,
                do="name a repository of transformers; a timm model is timm:NAME, with --weights F",
            )
        full = any(isinstance(each, OSError) and each.errno == errno.ENOSPC for each in causes(error))
        why = f"the disk of the cache {_constants().HF_HUB_CACHE} is full" if full else _unreachable(error)
        return self._not_in_the_cache(why, missing)

    def _not_in_the_cache(self, why: str, missing: list[str]) -> InputError:
        return InputError(
            f"{self} cannot be loaded: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in the cache",
            why=f"{why}; and there is no local folder {self}",
            where=str(_constants().HF_HUB_CACHE),
            do=f"download it where the hub can be reached, with `{self._command()}`, into this cache (HF_HUB_CACHE "
            "names another), or give a local folder as hf:DIR",
        )

    def _refuse(self, why: str, missing: list[str]) -> NoReturn:
        raise self._not_in_the_cache(why, missing)

    def _without_safetensors(self, why: str = f"it holds neither {WEIGHTS} nor {INDEX}") -> InputError:
        return InputError(
            f"{self} has no safetensors weights",
            why=f"{why}, and weights of the hub in other formats are not loaded",
            do="name a revision that has them, as hf:ORG/NAME@refs/pr/1; or convert them and give the folder as "
            "hf:DIR; or pass --weights F, or --model-arg random=true for random weights",
        )

    def _command(self) -> str:
        return f"hf download {self.repository}" + ("" if self.revision == "main" else f" --revision {self.revision}")


def _unreachable(error: Exception) -> str:
    """Say why the hub gave no answer."""
    host = _constants().ENDPOINT.partition("://")[2]
    chain = causes(error)
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    if status is not None:
        return f"the hub ({host}) answers with the HTTP status {status}"
    text = " ".join(f"{type(each).__name__} {each}" for each in chain)
    if any(isinstance(each, socket.gaierror) for each in chain) or re.search(
        "name resolution|not known|getaddrinfo|NameResolution|nodename", text
    ):
        return f"the name {host} is not resolved: there is no network, or no DNS"
    for pattern, why in (
        ("CERTIFICATE_VERIFY|SSLCertVerification", "its TLS certificate is not trusted, as behind some proxies"),
        ("Proxy", "the proxy of this network refuses the connection"),
        ("[Tt]imeout|timed out", f"it does not answer within {TIMEOUT_S} seconds"),
        ("[Rr]efused", "it refuses the connection"),
        ("[Uu]nreachable", "the network is unreachable"),
    ):
        if re.search(pattern, text):
            return f"the hub ({host}) cannot be reached: {why}"
    return f"the hub ({host}) cannot be reached: {reason(chain[-1])}"


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def _reach(url: str) -> None:
    """Ask for a file's headers once: a download that fails is repeated by huggingface_hub for up to a minute."""
    utils = _hub().utils
    utils.hf_raise_for_status(utils.get_session().head(url, headers=utils.build_hf_headers(), timeout=TIMEOUT_S))


def _hub() -> Any:
    return import_package("huggingface_hub")


def _errors() -> Any:
    _hub()
    return importlib.import_module("huggingface_hub.errors")


def _constants() -> Any:
    _hub()
    return importlib.import_module("huggingface_hub.constants")
