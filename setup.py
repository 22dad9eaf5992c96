"""Find the packages: the rooms stand beside ./jetvit in the repository, and inside of it once they are installed."""

from setuptools import find_packages, setup

ROOMS = {"jetvit": "jetvit"} | {
    f"jetvit.{room}": room for room in ("kernels", "patterns", "cost_model", "passes", "search")
}

setup(
    packages=[
        name
        for package, folder in ROOMS.items()
        for name in (package, *(f"{package}.{each}" for each in find_packages(folder)))
    ]
)
