"""Calibration: a plan without training, from measured drift and latency."""
