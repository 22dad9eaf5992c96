"""Run a program of the benchmarks as a child that ends with its parent.

A program of the campaign: `python -m benchmarks.gpu.run_module JSON`, with the module and its arguments.
"""

from __future__ import annotations

import json
import runpy
import sys

from benchmarks.gpu.processes import end_with_parent


def main() -> None:
    """Run the module under its own name, so that its rows name the command that repeats them."""
    end_with_parent()
    given = json.loads(sys.argv[1])
    sys.argv = [given["module"], *given["arguments"]]
    runpy.run_module(given["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
