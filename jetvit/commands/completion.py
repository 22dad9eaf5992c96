"""Print a script that completes commands, options and files in a shell."""

from __future__ import annotations

import argparse

from jetvit.patterns.errors import InputError

SHELLS = ("bash", "zsh", "fish")
FILES = {"F", "FILE", "FILE|model", "MODEL", "P", "PLAN", "T", "TABLE"}
"""Metavars of arguments that take a file; a plan is a folder, or a file in one."""

FOLDERS = {"DIR", "RUN"}
DESCRIPTION = """\
Print a script for a shell, which then completes commands, options, the values that an option has, and files where an
option takes one. It is made from the options of this jetvit: print it again after an update."""
EPILOG = """\
It needs shtab: pip install 'jetvit[completion]'. The script itself needs nothing.

examples:
  jetvit completion bash > ~/.local/share/bash-completion/completions/jetvit
  jetvit completion zsh  > ~/.zsh/_jetvit                       in a folder of $fpath
  jetvit completion fish > ~/.config/fish/completions/jetvit.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit completion`."""
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or fish")


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise InputError(
            "the script cannot be made", why="shtab is not installed", do="pip install 'jetvit[completion]'"
        ) from error
    from jetvit.cli import parser_of_all_commands  # which imports this file when the command is run

    parser = parser_of_all_commands()
    for command in parser.commands.values():
        for action in command._actions:
            if action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
