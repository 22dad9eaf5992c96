"""The metrics of two tasks over the drift of many plans."""
