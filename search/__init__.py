"""Choosing a plan: training-free calibration."""
