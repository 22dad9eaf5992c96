"""Build jetvit with setuptools; an editable install gets a package in site-packages that loads the checkout.

By itself setuptools installs an import hook, which comes last: in the folder above a clone called jetvit, Python
would take the clone for a package without code. A package in site-packages comes before that, and a checkout in the
current folder still comes before the package.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # the other hooks of a build backend

ROOT = Path(__file__).resolve().parent.parent
LOADER = '''\
"""The package of an editable install: it loads the checkout in its place."""

import importlib.util
import sys

_folder = {folder!r}
_spec = importlib.util.spec_from_file_location(
    "jetvit", _folder + "/__init__.py", submodule_search_locations=[_folder]
)
sys.modules["jetvit"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["jetvit"])
'''


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build an editable wheel with setuptools, and add the package that loads the checkout."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    _add(
        Path(wheel_directory) / name, "jetvit/__init__.py", LOADER.format(folder=(ROOT / "jetvit").as_posix()).encode()
    )
    return name


def _add(wheel: Path, name: str, content: bytes) -> None:
    """Add a file to a wheel and to its record."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel) as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    record = next(each for each in entries if each.endswith(".dist-info/RECORD"))
    entries[record] = f"{name},sha256={digest},{len(content)}\n".encode() + entries[record]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for each, data in {name: content, **entries}.items():
            new.writestr(each, data)
