"""The house rules: which room may import which, and that a bare checkout works without optional packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "patterns", "cost_model", "passes", "search", "jetvit")

# What a room may import beside the standard library and itself.
NUMERIC = {"torch", "numpy"}
MAY_IMPORT = {
    "kernels": {"torch", "triton"},
    "patterns": {"torch", "networkx", "onnx", "onnx_ir", "onnxscript", "sympy", "jetvit.kernels"},
    "cost_model": NUMERIC
    | {"safetensors", "jsonschema", "networkx", "scipy", "sklearn", "threadpoolctl"}
    | {"jetvit.kernels", "jetvit.patterns"},
    "passes": NUMERIC | {"networkx", "onnx", "onnx_ir", "onnxscript", "sympy", "safetensors", "torch_tensorrt"}
    | {"jetvit.patterns", "jetvit.kernels", "jetvit.cost_model"},
    "search": NUMERIC | {"accelerate", "scipy", "sklearn", "safetensors", "rich", "matplotlib", "PIL"}
    | {"jetvit.passes", "jetvit.patterns", "jetvit.cost_model", "jetvit.kernels"},
}  # fmt: skip
# The sub-rooms of a room, and which of each other a sub-room may import. The files beside them, such as pipeline.py and
# optimum.py, stand above them; in the face, these stand below: files.py and torch_private.py.
SUB_ROOMS = {
    "cost_model": {
        "files": set(),
        "plans": {"files"},
        "measuring": {"plans", "files"},
        "predicting": {"measuring", "plans", "files"},
    },
    "passes": {"graph": set(), "rewrites": {"graph"}, "targets": {"graph"}, "frontends": {"graph", "targets"}},
    "search": {
        "data": set(),
        "tasks": {"data"},
        "calibration": {"tasks", "data"},
        "post_training": {"calibration", "tasks", "data"},
    },
    "jetvit": {
        "models": {"files"},
        "report": {"files", "torch_private"},
        "dynamo": {"torch_private"},
        "runtimes": {"files"},
    },
}
# Below all rooms: each may import it, and it imports none.
FOUNDATION = "jetvit.torch_private"
# Imported inside the function that needs it: `import jetvit` must work where it is missing.
OPTIONAL = {
    *("triton", "timm", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "torch_tensorrt"),
    *("accelerate", "scipy", "sklearn"),
}


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def in_rooms() -> list[tuple[str, Path]]:
    return [(room, path) for room in ROOMS for path in files(room)]


EVERY_FILE = [pytest.param(room, path, id=str(path.relative_to(ROOT))) for room, path in in_rooms()]


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, whether it runs when the file is imported) of every import; `from jetvit import x` is jetvit.x."""
    tree = ast.parse(path.read_text())
    late = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, node not in late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names if node.module == "jetvit" else [None]:
                yield node.lineno, f"jetvit.{alias.name}" if alias else str(node.module), node not in late


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def room_of(module: str) -> str | None:
    """The room that a module of ours is in; the face is "jetvit"."""
    first, _, rest = module.partition(".")
    if first != "jetvit":
        return None
    room = rest.partition(".")[0]
    return room if room in ROOMS else "jetvit"


@pytest.mark.parametrize(("room", "path"), EVERY_FILE)
def test_imports_follow_the_table(room: str, path: Path) -> None:
    if room == "jetvit":
        return  # the face may import every room
    allowed = MAY_IMPORT[room]
    for line, module, _ in imports(path):
        if module == FOUNDATION:
            continue
        if (other := room_of(module)) is not None:
            assert other == room or f"jetvit.{other}" in allowed, f"{path}:{line}: {room} imports {module}"
        else:
            name = module.partition(".")[0]
            known = name in allowed or name in sys.stdlib_module_names
            assert known, f"{path}:{line}: {room} imports {module}"


def modules_of(room: str) -> dict[str, Path]:
    """Every module of a room, and its file: {"passes.graph.base": …}, with jetvit.cli as "jetvit.cli"."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in files(room)
        if path.name != "__init__.py"
    }


def imported_from_the_room(room: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of the imports of a file's own room, those of functions and for types included."""
    modules = modules_of(room)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                for candidate in (f"{node.module}.{name.name}", str(node.module)):
                    local = candidate if room == "jetvit" else candidate.removeprefix("jetvit.")
                    if local in modules:
                        yield node.lineno, local
                        break


@pytest.mark.parametrize("room", SUB_ROOMS)
def test_sub_rooms_import_each_other_one_way(room: str) -> None:
    for module, path in modules_of(room).items():
        _, sub_room, *rest = module.split(".")
        if not rest or sub_room not in SUB_ROOMS[room]:
            continue
        for line, other in imported_from_the_room(room, path):
            assert other.split(".")[1] in {sub_room, *SUB_ROOMS[room][sub_room]}, f"{path}:{line} imports {other}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_imports_one_that_imports_it(room: str) -> None:
    arrows = networkx.DiGraph(
        (module, other) for module, path in modules_of(room).items() for _, other in imported_from_the_room(room, path)
    )
    assert [sorted(files) for files in networkx.strongly_connected_components(arrows) if len(files) > 1] == []


def test_what_stands_below_all_rooms_imports_none() -> None:
    path = ROOT / (FOUNDATION.replace(".", "/") + ".py")
    assert not [module for _, module, _ in imports(path) if room_of(module) is not None]


@pytest.mark.parametrize(("room", "path"), EVERY_FILE)
def test_rooms_are_imported_by_their_names_in_the_package(room: str, path: Path) -> None:
    """`jetvit.passes`, never `passes`, `tests` or `benchmarks`: an installed wheel has no such top-level names."""
    outside = {"kernels", "patterns", "cost_model", "passes", "search", "tests", "benchmarks"}
    for line, module, _ in imports(path):
        assert module.partition(".")[0] not in outside, f"{path}:{line}: {module}"


@pytest.mark.parametrize(("room", "path"), EVERY_FILE)
def test_optional_packages_are_imported_late(room: str, path: Path) -> None:
    for line, module, early in imports(path):
        if early and module.partition(".")[0] in OPTIONAL:
            assert room == "kernels", f"{path}:{line}: {module} is optional"
            # a file of Triton kernels, which is itself imported late
            assert path.stem in ("kernel", "triton") or "triton" in path.stem, f"{path}:{line}: {module} is optional"


@pytest.mark.parametrize(("room", "path"), EVERY_FILE)
def test_type_ignores_name_their_code(room: str, path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        assert not re.search(r"#\s*type:\s*ignore(?!\[[a-z, -]+\])", line), f"{path}:{number}"


@pytest.mark.parametrize(("room", "path"), EVERY_FILE)
def test_files_say_what_they_are(room: str, path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_tests_mirror_the_rooms() -> None:
    """tests/<room>/<sub-room>/test_<file>.py tests <room>/<sub-room>/<file>.py, or a folder of that name."""
    for room in ROOMS:
        for test in sorted((ROOT / "tests" / room).rglob("test_*.py")):
            folder = ROOT / room / test.parent.relative_to(ROOT / "tests" / room)
            stems = {path.stem for path in folder.rglob("*.py")} | {path.parent.name for path in folder.rglob("*.py")}
            stem = test.stem.removeprefix("test_")
            assert stem in stems or any(each.startswith(stem) or stem.startswith(each) for each in stems), (
                f"{test.relative_to(ROOT)} tests no file of {folder.relative_to(ROOT)}/"
            )


def test_the_list_of_slow_tests_names_tests_that_are_there() -> None:
    lines = (ROOT / "tests" / "slow.txt").read_text().splitlines()
    named = [line for line in lines if line and not line.startswith("#")]
    assert named == sorted(set(named))
    for line in named:
        file, _, test = line.partition("::")
        assert re.search(rf"^def {test.partition('[')[0]}\(", (ROOT / file).read_text(), re.MULTILINE), line


def python(code: str, cwd: Path = ROOT, **environment: str) -> str:
    """What a fresh Python prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment or None, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light() -> None:
    """`import jetvit` and its rooms, in a fresh process at the top of the repository, load no optional package."""
    loaded = python(
        "import sys, jetvit, jetvit.patterns, jetvit.kernels, jetvit.cost_model, jetvit.passes\n"
        f"optional = {sorted(OPTIONAL)}\n"
        "kernels = [name for name in sys.modules if name.startswith('jetvit.') and 'triton' in name]\n"
        "print([name for name in optional if name in sys.modules] + kernels)"
    )
    assert loaded.strip() == "[]"


def test_import_works_where_optional_packages_are_missing() -> None:
    """The same on a machine that has none of them."""
    python(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))\n"
        "import jetvit, jetvit.patterns, jetvit.kernels, jetvit.passes.frontends.capture"
    )


def test_bare_checkout_finds_the_rooms(tmp_path: Path) -> None:
    """Rooms stand beside ./jetvit, from whatever folder Python is started, and come from there alone."""
    for folder in (ROOT, tmp_path):
        where = python(
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "import jetvit, jetvit.patterns, jetvit.passes\n"
            "print(jetvit.__file__, jetvit.patterns.__file__, jetvit.passes.__file__, sep='\\n')",
            cwd=folder,
        )
        assert where.split() == [str(ROOT / room / "__init__.py") for room in ("jetvit", "patterns", "passes")]


def test_another_folder_is_not_taken_for_a_checkout(tmp_path: Path) -> None:
    """An installed package beside an unrelated `passes` is not joined with it."""
    (tmp_path / "jetvit").mkdir()
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "__init__.py").touch()
    (tmp_path / "jetvit" / "__init__.py").write_text(
        (ROOT / "jetvit" / "__init__.py").read_text().partition("_MODULES = ")[0]
    )
    paths = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport jetvit; print(list(jetvit.__path__))", tmp_path
    )
    assert paths.strip() == str([str(tmp_path / "jetvit")])
