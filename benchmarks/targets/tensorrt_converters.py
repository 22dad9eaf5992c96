"""What a release of Torch-TensorRT can convert, read from its wheel without importing it.

The wheel is Python source: every converter is registered by a decorator, the decomposition groups are set literals, the
plugin generator asks for the type of each argument in turn. All of that is read off the syntax trees, so no GPU and no
TensorRT is needed, and nothing of the wheel runs. What comes out are names: `jetvit.passes.targets.tensorrt` proves
with them that every operator of a prepared graph has a converter.

    pip download --no-deps torch-tensorrt
    python -m benchmarks.targets.tensorrt_converters torch_tensorrt-*.whl -o benchmarks/targets/converters.json
"""

from __future__ import annotations

import argparse
import ast
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

PACKAGE = "torch_tensorrt"
GROUPS = f"{PACKAGE}/dynamo/lowering/_decomposition_groups.py"
DECOMPOSITIONS = f"{PACKAGE}/dynamo/lowering/_decompositions.py"
LOWERING = f"{PACKAGE}/dynamo/lowering/passes"
PLUGINS = f"{PACKAGE}/dynamo/conversion/plugins"
SIGNATURES = {
    "dynamo.compile": (f"{PACKAGE}/dynamo/_compiler.py", "compile"),
    "save": (f"{PACKAGE}/_compile.py", "save"),
    "dynamo.conversion.plugins.custom_op": (f"{PLUGINS}/_custom_op.py", "custom_op"),
}
Trees = dict[str, ast.Module]


def read_wheel(path: Path) -> dict[str, Any]:
    """The document that `benchmarks/targets/converters.json` holds, from a wheel of Torch-TensorRT.

    Raises:
        ValueError: the file is no wheel of Torch-TensorRT, or of one that is built otherwise.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if name.startswith(f"{PACKAGE}/") and name.endswith(".py")]
            trees = {name: ast.parse(wheel.read(name).decode("utf-8"), name) for name in sorted(names)}
            version = _version(wheel)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no wheel: {error}") from error
    for name in (GROUPS, DECOMPOSITIONS, f"{PLUGINS}/_generate_plugin.py", *(file for file, _ in SIGNATURES.values())):
        if name not in trees:
            raise ValueError(f"{path.name} has no {name}: another layout than this program knows")
    converters, unresolved = _converters(trees)
    return {
        "format": 1,
        "wheel": path.name,
        "version": version,
        "converters": converters,
        "unresolved": unresolved,
        "decompositions": {
            "enabled": _set_of(trees[GROUPS], "torch_enabled_decompositions"),
            "disabled": _set_of(trees[GROUPS], "torch_disabled_decompositions"),
            "attention": _set_of(trees[DECOMPOSITIONS], "ATTENTION_DECOMPOSITION_OPS"),
            "own": _own_decompositions(trees[DECOMPOSITIONS]),
        },
        "removed": _removed(trees),
        "plugin_types": _plugin_types(trees[f"{PLUGINS}/_generate_plugin.py"]),
        "signatures": {name: _signature(trees[file], function) for name, (file, function) in SIGNATURES.items()},
        "settings": _fields(trees, "CompilationSettings"),
        "backends": _backends(trees),
    }


def _version(wheel: zipfile.ZipFile) -> str:
    for name in wheel.namelist():
        if PurePosixPath(name).name == "METADATA" and name.count("/") == 1:
            for line in wheel.read(name).decode("utf-8").splitlines():
                if line.startswith("Version: "):
                    return line.removeprefix("Version: ").strip()
    raise ValueError("the wheel has no METADATA with a version")


def op_name(expression: ast.expr) -> str | None:
    """`torch.ops.aten.add.Tensor` as "aten.add.Tensor", `operator.getitem` and `torch.sym_min` as they are.

    None for anything that is not a name that one can look up, such as a variable.
    """
    name = ast.unparse(expression)
    parts = name.removeprefix("torch.ops.").split(".")
    known = name.startswith("torch.ops.") or parts[0] in ("aten", "prims", "operator", "torch", "math")
    return ".".join(parts) if known and len(parts) > 1 and all(part.isidentifier() for part in parts) else None


# --- converters -------------------------------------------------------------------------------------------------------


def _converters(trees: Trees) -> tuple[list[dict[str, Any]], list[str]]:
    """One entry a registration, and the keys that are no names of operators."""
    found: list[dict[str, Any]] = []
    unresolved: set[str] = set()
    for tree in trees.values():
        for call, function, conditions, loops in _registrations(tree):
            key = call.args[0] if call.args else next(each.value for each in call.keywords if each.arg == "key")
            targets = loops.get(key.id, [key]) if isinstance(key, ast.Name) else [key]
            for target in targets:
                if (op := op_name(target)) is None:
                    unresolved.add(ast.unparse(target))
                else:
                    found.append({"op": op, "function": function, **_options(call, conditions)})
    return sorted(found, key=lambda entry: entry["op"]), sorted(unresolved)


def _registrations(tree: ast.Module) -> Iterator[tuple[ast.Call, str, list[str], dict[str, list[ast.expr]]]]:
    """(call of the decorator, function, what must hold for it to run, loop variables) of each registration."""

    def walk(
        node: ast.AST, conditions: list[str], loops: dict[str, list[ast.expr]]
    ) -> Iterator[tuple[ast.Call, str, list[str], dict[str, list[ast.expr]]]]:
        for child in ast.iter_child_nodes(node):
            inner, names = conditions, loops
            if isinstance(child, ast.If):
                test = ast.unparse(child.test)
                for part, label in ((child.body, test), (child.orelse, f"not {test}")):
                    yield from walk(ast.Module(part, []), [*conditions, label], loops)
                continue
            if isinstance(child, ast.Try):
                needs = [*conditions, *sorted(_imported(child.body))]
                for part, inside in ((child.body, needs), (child.orelse, needs), (child.finalbody, conditions)):
                    yield from walk(ast.Module(part, []), inside, loops)
                continue
            if isinstance(child, ast.For) and isinstance(child.target, ast.Name):
                values = child.iter.elts if isinstance(child.iter, ast.List | ast.Tuple | ast.Set) else []
                names = {**loops, child.target.id: list(values)} if values else loops
            if isinstance(child, ast.FunctionDef):
                for decorator in child.decorator_list:
                    if isinstance(decorator, ast.Call) and _is_converter(decorator):
                        yield decorator, child.name, conditions, names
            elif isinstance(child, ast.Call) and isinstance(child.func, ast.Call) and _is_converter(child.func):
                yield child.func, ast.unparse(child.args[0]), conditions, names
            yield from walk(child, inner, names)

    return walk(tree, [], {})


def _is_converter(call: ast.Call) -> bool:
    return ast.unparse(call.func).rpartition(".")[2] == "dynamo_tensorrt_converter"


def _imported(body: list[ast.stmt]) -> set[str]:
    """The modules that a `try` imports."""
    return {f"import {alias.name}" for node in body if isinstance(node, ast.Import) for alias in node.names}


def _options(call: ast.Call, conditions: list[str]) -> dict[str, Any]:
    given = {each.arg: each.value for each in call.keywords}
    validator = given.get("capability_validator")
    return {
        "validator": None if validator is None else _validator_name(validator),
        "dynamic": _is_true(given.get("supports_dynamic_shapes")),
        "output_allocator": _is_true(given.get("requires_output_allocator")),
        "requires": " and ".join(conditions) or None,
    }


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def _validator_name(validator: ast.expr) -> str:
    """The name of a validator, its call where one makes it, or the names that a lambda calls."""
    if not isinstance(validator, ast.Lambda):
        return ast.unparse(validator)
    negated = [node.operand for node in ast.walk(validator) if isinstance(node, ast.UnaryOp)]
    calls = [node for node in ast.walk(validator) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    return ", ".join(("not " if call in negated else "") + ast.unparse(call.func) for call in calls)


# --- decompositions and passes ----------------------------------------------------------------------------------------


def _set_of(tree: ast.Module, variable: str) -> list[str]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == variable for target in targets)
        if named and isinstance(value := getattr(node, "value", None), ast.Set):
            return sorted(str(op_name(element)) for element in value.elts)
    raise ValueError(f"there is no set {variable}")


def _own_decompositions(tree: ast.Module) -> list[dict[str, str]]:
    """Operators that Torch-TensorRT takes apart by its own functions: the function, or the operator in their place."""
    found = []
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", ()):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "register_torch_trt_decomposition":
                found.append({"op": op_name(decorator.args[0]) or "", "by": getattr(node, "name", "")})
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "replace_inplace_op":
            found.append({"op": op_name(call.args[0]) or "", "by": op_name(call.args[1]) or ""})
    return sorted(found, key=lambda entry: entry["op"])


def _removed(trees: Trees) -> list[str]:
    """Operators whose nodes the passes called `remove_…` compare for and erase."""
    found: set[str] = set()
    for file, tree in trees.items():
        if file.startswith(f"{LOWERING}/remove_"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Compare) and ast.unparse(node.left) == "node.target":
                    found |= {name for right in node.comparators if (name := op_name(right)) is not None}
    return sorted(found)


def _plugin_types(tree: ast.Module) -> list[str]:
    """The schema types that the plugin generator takes: the argument of each `type.isSubtypeOf(torch._C.X.get())`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    asked = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "isSubtypeOf"]
    names = [ast.unparse(call.args[0]) for call in sorted(asked, key=lambda call: call.lineno)]
    if not names:
        raise ValueError("the plugin generator asks for no types")
    return [name.removeprefix("torch._C.").removesuffix(".get()") for name in names]


# --- signatures -------------------------------------------------------------------------------------------------------


def _signature(tree: ast.Module, function: str) -> dict[str, Any]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            arguments = node.args
            return {
                "positional": [each.arg for each in (*arguments.posonlyargs, *arguments.args)],
                "keyword": [each.arg for each in arguments.kwonlyargs],
                "others": arguments.kwarg is not None,
            }
    raise ValueError(f"there is no function {function}")


def _fields(trees: Trees, class_name: str) -> list[str]:
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
                return sorted(ast.unparse(each.target) for each in fields)
    raise ValueError(f"there is no class {class_name}")


def _backends(trees: Trees) -> list[str]:
    """The names under which the release registers backends of torch.compile."""
    found: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("register_backend"):
                    found |= {
                        str(each.value.value) for each in decorator.keywords if isinstance(each.value, ast.Constant)
                    }
    return sorted(found)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    document = read_wheel(arguments.wheel)
    arguments.output.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(document['converters'])} converters of Torch-TensorRT {document['version']} in {arguments.output}")


if __name__ == "__main__":
    main()
