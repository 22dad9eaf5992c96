"""Measured latencies: operations, the sweep over them, the table of a device, and whole-model runs."""
