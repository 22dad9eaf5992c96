"""The command `jetvit`: one subcommand a file in `jetvit.commands`, and what becomes of their errors.

Exit status: 0 done, 1 a named refusal, 2 wrong usage, 130 interrupted, 143 ended by SIGTERM. Results go to stdout, all
else to stderr.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import jetvit
from jetvit.commands import COMMANDS
from jetvit.versions import warn_of_untested

# The loggers whose information is shown as notes.
_TELLING = ("jetvit.search", "jetvit.models.image_files", "jetvit.models.datasets")
EPILOG = """\
MODEL is one of
  hf:DIR               a local HuggingFace folder: config.json and its weights
  hf:ORG/NAME          a model of the Hugging Face hub, or hf:ORG/NAME@REVISION: from the local cache, else downloaded
  timm:NAME            a timm model; random weights unless --weights F is given
  pkg.module:factory   a function of yours that returns the model; your code is run
  FILE.pt2             a program that torch.export or jetvit wrote
  FILE.onnx            a model of any ONNX exporter

example: from a model to a faster file
  jetvit explain   hf:dinov3-base --size 704x960
  jetvit calibrate hf:dinov3-base --size 704x960 --images photos/ -o plan/
  jetvit check     hf:dinov3-base --size 704x960 --images other-photos/ --plan plan/
  jetvit bench     hf:dinov3-base --size 704x960 --plan plan/
  jetvit optimize  hf:dinov3-base --size 704x960 --plan plan/ -o fast.pt2
  jetvit export    hf:dinov3-base --size 704x960 --plan plan/ --target onnx -o fast.onnx

`jetvit search` takes the place of calibrate and trains: see its --help.

`jetvit COMMAND --help` says more about each. No model at hand? Run `jetvit demo`.
Completion in bash, zsh and fish: see `jetvit completion --help`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit status."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or file that cannot show "×" gets "?" instead of an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        args = _parse(argv)
    except SystemExit as leave:  # argparse has printed help or an error
        return int(leave.code or 0)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Run a command, print what becomes of its errors and return the exit status."""
    from jetvit.refusals import refusal  # imports torch, as the command has; `jetvit --help` and `--version` do without

    warn_of_untested()
    handler = _log_to(sys.stderr)
    try:
        with warnings.catch_warnings(), _leaving_at_sigterm():
            if not args.debug:
                warnings.simplefilter("ignore")  # of libraries; what the user should see comes as notes
            args.run(args)
            sys.stdout.flush()
    except SystemExit as leave:  # a command has refused its arguments
        return int(leave.code or 0)
    except BrokenPipeError:  # `jetvit explain … | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        what, status = ("ended by SIGTERM", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        return _fail(f"{what}; nothing was left half-written", args.debug, status)
    except Exception as error:
        return _fail(f"error: {refusal(error)}", args.debug)
    finally:
        logging.getLogger("jetvit").removeHandler(handler)
        for name in _TELLING:
            logging.getLogger(name).setLevel(logging.NOTSET)
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler, a container or `kill` ends the process; it is handled as Ctrl-C is."""


@contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """Within it a request to end, of a scheduler or a container, cleans up what is half-written, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread alone
        return

    def leave(number: int, _: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, debug: bool, status: int = 1) -> int:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk behind it: Python would try once more as it exits, and fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


class _Lines(logging.Formatter):
    """Warnings as "warning: …", and information as "note: …"."""

    def format(self, record: logging.LogRecord) -> str:
        word = "warning" if record.levelno >= logging.WARNING else "note"
        return f"{word}: {super().format(record)}"


def _log_to(stream: TextIO) -> logging.Handler:
    """Show the warnings of jetvit, and what the search and the reading of images say of their own work.

    The warnings of model loading come as notes of the loaded model.
    """
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.INFO)
    handler.setFormatter(_Lines("%(message)s"))
    handler.addFilter(lambda record: record.name not in ("jetvit.models.load", "jetvit.models.factory"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(_TELLING))
    logger = logging.getLogger("jetvit")
    logger.addHandler(handler)
    for name in _TELLING:
        logging.getLogger(name).setLevel(logging.INFO)
    return handler


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and names the nearest command or option."""

    def __init__(self, **options: object):
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )
        self.commands: dict[str, Parser] = {}

    def refuse(self, what: str, do: str = "") -> NoReturn:
        """Say what is wrong and leave with status 2."""
        advice = do or f"see {self.prog} --help"
        self.exit(2, f"error: {what}\n  do: {advice}\n")

    def error(self, message: str) -> NoReturn:
        self.refuse(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the choices: releases of Python word this in several ways."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(map(str, action.choices))}")


def parser_of_all_commands() -> Parser:
    """Return the parser with the arguments of every command, which imports them all, and torch."""
    parser = _parser()
    _add_commands(parser, COMMANDS, "the command")
    return parser


def _parser() -> Parser:
    """The parser without commands."""
    parser = Parser(
        prog="jetvit",
        usage="jetvit COMMAND …",
        description="Rewrite full attention in Vision Transformers into window and linear attention.\n\ncommands:\n"
        + "\n".join(f"  {name:<12}{summary}" for name, summary in COMMANDS.items()),
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"jetvit {jetvit.__version__}")
    _add_debug_option(parser, default=False)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is None and not {"-h", "--help", "--version"} & set(words):
        parser.print_help(sys.stderr)
        parser.exit(2, "\nerror: name a command\n")
    if first is not None and first not in COMMANDS:
        parser.refuse(f"there is no command {first!r}", _nearest(first, COMMANDS))
    if first is not None:
        _add_commands(parser, [first], argparse.SUPPRESS)  # the description lists the commands
        command, at = parser.commands[first], words.index(first) + 1
        words[at:] = _with_negative_values(command, words[at:])
        _refuse_unknown_options(command, words[at:])
    args, unknown = parser.parse_known_args(words)
    if unknown:
        args.parser.refuse(f"{args.parser.prog} takes no further word, and {unknown[0]!r} is one")
    return args


def _add_commands(parser: Parser, names: Iterable[str], what: str) -> None:
    """Add the arguments of these commands: `jetvit --help` and `--version` import none, and so no torch."""
    subparsers = parser.add_subparsers(help=what, parser_class=Parser, prog="jetvit")
    for name in names:
        module = importlib.import_module(f"jetvit.commands.{name}")
        command = subparsers.add_parser(name, help=COMMANDS[name], description=module.DESCRIPTION, epilog=module.EPILOG)
        module.add_arguments(command)
        _add_debug_option(command)
        command.set_defaults(run=module.run, parser=command)
        parser.commands[name] = command


def _add_debug_option(parser: argparse.ArgumentParser, default: Any = argparse.SUPPRESS) -> None:
    """`--debug`, which stands before or after the command."""
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def _refuse_unknown_options(command: Parser, words: Sequence[str]) -> None:
    """Before argparse looks: it would speak of a required option that is missing because its name is mistyped."""
    known = [option for action in command._actions for option in action.option_strings]
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            command.refuse(f"{command.prog} has no option {option!r}", _nearest(option, known))


def _with_negative_values(command: Parser, words: Sequence[str]) -> list[str]:
    """Join an option and a value that starts with a minus and a digit: argparse takes it for an option, and says that
    the value is missing."""
    takers = {
        option
        for action in command._actions
        for option in action.option_strings
        if option.startswith("--") and action.nargs is None
    }
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in takers and re.match(r"-\.?\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
