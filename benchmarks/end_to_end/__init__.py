"""Whole models on a GPU: full attention, compiled and not, and rewritten models."""
