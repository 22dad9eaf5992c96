"""The subcommands of `jetvit`, one a file.

A module here has a docstring whose first line is the command's summary, `DESCRIPTION` and `EPILOG` for its help,
`add_arguments(parser)` and `run(args)`, which prints the result to stdout or raises a `JetvitError`.
"""

from jetvit.commands import bench, calibrate, check, demo, explain, export, fit, measure, optimize, search

COMMANDS = (explain, calibrate, search, check, optimize, export, bench, measure, fit, demo)
