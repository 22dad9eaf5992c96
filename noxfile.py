"""The test suite on the oldest releases that jetvit takes, on the pinned ones and on the newest.

    nox                      every session; `make test-versions` is the same
    nox -s tests-oldest      one of them; `nox --list` has their names

Each session has its own environment, and leaves what was passed, failed and skipped, with the releases it ran on, in
benchmarks/results/versions/NAME.json. `python -m benchmarks.compatibility` makes docs/compatibility.md of these.
torch's build for CUDA, 3 to 5.5 GB, is what older and newest releases install as; they run without a GPU too.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

EXTRAS = ".[models,onnx,openvino,search,test]"
# Two processes: Triton's interpreter takes the place of its compiler for a whole process.
SUITES = {
    "main": (["-m", "not slow and not gpu and not interpreter"], {}),
    "interpreter": (["-m", "not slow", "tests/interpreter"], {"TRITON_INTERPRET": "1"}),
}


# What a release of transformers asks for beyond the floors of pyproject.toml, by itself or by way of huggingface_hub.
RAISED_FLOORS = {"4.57.0": (), "5.17.0": ("safetensors", "rich")}


@nox.session(name="tests-oldest", python=["3.11"])
@nox.parametrize("transformers", [*RAISED_FLOORS])
def tests_oldest(session: nox.Session, transformers: str) -> None:
    """torch 2.11 and the floors of pyproject.toml, with two releases of transformers."""
    name = f"oldest-transformers-{transformers.rpartition('.')[0]}"
    constraints = folder_of(name) / "constraints.txt"
    lines = Path("constraints-oldest.txt").read_text().splitlines()
    freed = ("transformers", *RAISED_FLOORS[transformers])
    kept = [line for line in lines if line.partition("==")[0] not in freed]
    constraints.write_text("\n".join([*kept, f"transformers=={transformers}"]) + "\n")
    install(session, constraints)
    run_tests(session, name)


@nox.session(name="tests", python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The releases of constraints.txt, which `make test` runs on."""
    install(session, Path("constraints.txt"))
    run_tests(session, f"pinned-python-{session.python}")


@nox.session(name="tests-newest", python=["3.11", "3.13", "3.14"])
def tests_newest(session: nox.Session) -> None:
    """The newest release of everything."""
    install(session, None)
    run_tests(session, f"newest-python-{session.python}")


def folder_of(name: str) -> Path:
    """The folder of a session's own files. nox's would become the TMPDIR of the tests, inside of the checkout."""
    folder = Path("build", "versions", name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def install(session: nox.Session, constraints: Path | None) -> None:
    """Install jetvit and what it is tested with. torch first, so that nothing pulls another build of it."""
    pinned = ["--constraint", str(constraints.resolve())] if constraints else ["--upgrade"]
    session.install(*pinned, "torch")
    session.install(*pinned, "--no-deps", "torchvision")
    session.install(*pinned, "--editable", EXTRAS)


def run_tests(session: nox.Session, name: str) -> None:
    """Run both parts of the suite, record both, and fail if one did."""
    folder = folder_of(name)
    for suite, (arguments, environment) in SUITES.items():
        report = folder / f"{suite}.xml"
        report.unlink(missing_ok=True)
        command = ["python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", f"--junitxml={report}", *arguments]
        session.run(*command, *session.posargs, env=environment, success_codes=[0, 1])  # `record` tells of failures
    reports = [str(folder / f"{suite}.xml") for suite in SUITES]
    session.run("python", "-m", "benchmarks.compatibility", "record", name, *reports)
