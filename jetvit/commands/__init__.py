"""The subcommands of `jetvit`, one a file.

A module here has a docstring whose first line is the command's summary, `DESCRIPTION` and `EPILOG` for its help,
`add_arguments(parser)` and `run(args)`, which prints the result to stdout or raises a `JetvitError`.
"""

COMMANDS = {
    "explain": "List the attention of a model, and what a plan makes of it",
    "calibrate": "Make a plan from measured drift and latency, without training",
    "search": "Make a plan with trained weights, for a task and within a latency",
    "check": "Measure the drift of a plan on new images, and the metric of a task beside it",
    "optimize": "Write the rewritten model as a .pt2 or .onnx file",
    "export": "Write the rewritten model for another place: compiled code, ONNX, TensorRT",
    "bench": "Time a model end to end against compiled full attention",
    "measure": "Measure the latency of single operations into a table of this device",
    "fit": "Fit the predictor of a latency table, for the operations that were not measured",
    "completion": "Print a script that completes commands, options and files in a shell",
    "demo": "Show the whole search on a CPU, in three to ten minutes on two cores",
}
"""The name of each and its summary, which stand here too so that `jetvit --help` imports none of them."""
