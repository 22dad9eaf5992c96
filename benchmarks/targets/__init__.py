"""Rewritten models in every runtime that `jetvit export` writes for."""
