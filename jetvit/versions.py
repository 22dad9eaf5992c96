"""The releases of other libraries that jetvit was tested with; any other is warned of once, at import."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

TESTED: Mapping[str, tuple[str, str]] = {
    "Python": ("3.11", "3.14"),
    "torch": ("2.11.0", "2.15.0"),
    "triton": ("3.6.0", "3.9.0"),
    "transformers": ("4.57.0", "5.24.0"),
    "timm": ("1.0.20", "1.0.31"),
    "onnx": ("1.19.0", "1.23.2"),
    "onnxscript": ("0.7.1", "0.7.2"),
    "onnxruntime": ("1.27.0", "1.32.0"),
}
"""The oldest and the newest release that the whole test suite ran with."""


def warn_of_untested() -> None:
    """Warn, by name, of installed releases that jetvit was never tested with."""
    if untested := list(untested_releases(installed())):
        warnings.warn(
            f"jetvit was never tested with {', '.join(untested)}. It may well work: please report what does not",
            stacklevel=3,  # whoever imports jetvit
        )


def installed() -> dict[str, str]:
    """The releases at hand of the packages in `TESTED`; those that are not installed are left out."""
    found = {"Python": ".".join(map(str, sys.version_info[:3]))}
    for name in TESTED:
        try:
            found.setdefault(name, version(name))
        except PackageNotFoundError:
            continue
    return found


def untested_releases(releases: Mapping[str, str]) -> Iterator[str]:
    """List the packages older or newer than all tested releases, each as "torch 2.9.1 (2.11.0 to 2.13.0 were)".

    A later patch of a tested release counts as tested: the first two numbers are compared.
    """
    for name, release in releases.items():
        oldest, newest = TESTED[name]
        if not numbers(oldest) <= numbers(release) <= numbers(newest):
            yield f"{name} {release} ({f'{oldest} to {newest} were' if oldest != newest else f'{oldest} was'})"


def numbers(release: str) -> tuple[int, ...]:
    """The first two numbers of a release: (2, 13) of 2.13.0+cpu."""
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
