"""What jetvit does with the models of timm and transformers: the sweep of tests/zoo, and the page that shows it.

    python -m benchmarks.supported_models run [NAME…]    run the sweep, or the models whose names have a NAME in them
    python -m benchmarks.supported_models [--check]      write docs/supported-models.md from the newest results

`run` adds to the results of the same day, model by model, so that it can be interrupted and a model repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import newest
from benchmarks.results import default_path, environment, write, write_page

NAME = "supported_models"
PAGE = Path(__file__).parent.parent / "docs" / "supported-models.md"


def measure(names: Sequence[str], path: Path) -> int:
    """Run the entries that have one of `names` in theirs, all by default; the number of those that fail."""
    import torch

    from tests.zoo.sweep import complaints, run
    from tests.zoo.sweep_tables import ENTRIES

    torch.set_num_threads(1)
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    failed = 0
    for entry in ENTRIES.values():
        if names and not any(name in entry.name for name in names):
            continue
        start = time.process_time()
        row = run(entry)
        said = complaints(entry, row)
        failed += bool(unexpected(entry.fails, said))
        print(f"{entry.name}: {row.found or 'no site'}, {time.process_time() - start:.0f} s {said or ''}", flush=True)
        rows[entry.name] = _without_folders({**dataclasses.asdict(row), "complaints": said})
        libraries = {library: version(library) for library in ("timm", "transformers")}
        ordered = [rows[name] for name in ENTRIES if name in rows]
        with contextlib.redirect_stdout(io.StringIO()):  # once for each model is too often
            write(path, {**environment(), **libraries, "rows": ordered})
    print(f"wrote {path}")
    return failed


def _without_folders(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose messages name the files of libraries as they are on any machine."""
    kept: dict[str, Any] = json.loads(re.sub(r"/[^\s\"]*/site-packages/", "", json.dumps(row, ensure_ascii=False)))
    return kept


def unexpected(fails: Mapping[str, str], said: Mapping[str, str]) -> dict[str, str]:
    """The complaints that `Entry.fails` does not name, and a word on those that it names and that are gone."""
    new = {step: text for step, text in said.items() if step not in fails or not text.startswith(fails[step])}
    return new | {step: "does not fail any more" for step in fails if step not in said}


def page(record: Mapping[str, Any]) -> str:
    """docs/supported-models.md, from a result file."""
    rows = record["rows"]
    bad = [row for row in rows if row["complaints"]]
    sites = sum(int(count) for row in rows for count in re.findall(r"(\d+) of ", row["found"]))
    lines = [
        "# Supported models",
        "",
        f"{len(rows)} small configurations of the models of timm {record['timm']} and transformers "
        f"{record['transformers']}, with random",
        f"weights, run with torch {record['torch']} on {record['date'][:10]} ({record['device']}). Small: few blocks,",
        "narrow layers, images of 32 to 256 pixels. `python -m benchmarks.supported_models run` measures them,",
        "`make test-slow` tests them, and `python -m benchmarks.supported_models` makes this page from the results.",
        "",
        f"jetvit finds {sites} attentions in {sum(bool(row['found']) for row in rows)} of them. "
        "Each model is compared twice with eager PyTorch, in fp32 unless its name says fp64; the numbers are",
        "the largest difference, relative to the largest value of that output:",
        "",
        "* *Unchanged*: the rewritten model without a plan, and the eager model.",
        "* *Windows*: the model with windows of 2×2 tokens (1×2 in a grid of 2×2) at every attention found, and the",
        "  eager model in which a mask that is made by hand keeps these attentions inside of the same windows.",
        "",
        "Both have two numbers: of `jetvit.optimize`, which captures by torch.export, and of",
        '`torch.compile(backend="jetvit")`. “1+4×6” is one extra token in front of a grid of 4 rows and 6 columns.',
        "What is refused is not rewritten and keeps its meaning. Models with neither have no softmax of queries with",
        "keys, unless they are named among the failures.",
        "",
    ]  # fmt: skip
    for library in ("timm", "transformers"):
        lines += [
            f"## {library}",
            "",
            "| model | attentions found | refused | unchanged | windows |",
            "|---|---|---|---|---|",
            *(_line(row) for row in rows if row["library"] == library),
            "",
        ]
    if bad:
        lines += [
            "## What fails",
            "",
            "The sweep expects these failures; each is an error to be mended, or a limit.",
            "",
        ]
        for row in bad:
            lines += [f"* `{row['name']}`: {step}: {_short(text, 160)}" for step, text in row["complaints"].items()]
        lines.append("")
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    refused = "; ".join(f"{count} × {_short(reason)}" for reason, count in row["refused"].items())
    if "find" in row["errors"]:
        refused = "not captured, see below"
    cells = [f"`{row['name']}`", row["found"], refused, _values(row["exact"]), _values(row["windows"])]
    return "| " + " | ".join(cells) + " |"


def _short(text: str, width: int = 110) -> str:
    text = _plain(text)
    return text if len(text) <= width else text[: width - 1].rsplit(" ", 1)[0] + " …"


def _plain(text: str) -> str:
    """A text as one line of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _values(differences: Mapping[str, float]) -> str:
    """Both frontends, the export first."""
    if not differences:
        return ""
    return " / ".join(_value(differences.get(frontend)) for frontend in ("export", "compile"))


def _value(difference: float | None) -> str:
    if difference is None:
        return "–"
    return "0" if difference == 0 else f"{difference:.0e}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, or write or check the page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is behind")
    commands = parser.add_subparsers(dest="command")
    running = commands.add_parser("run", help="run the sweep")
    running.add_argument("names", nargs="*", help="parts of the names of models; all by default")
    running.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(arguments)
    if args.command == "run":
        return 1 if measure(args.names, args.output or default_path(NAME)) else 0
    results = newest(NAME)
    if not results:
        print("no results yet: python -m benchmarks.supported_models run", file=sys.stderr)
        return 1
    return write_page(PAGE, page(results[-1][1]), args.check)


if __name__ == "__main__":
    sys.exit(main())
