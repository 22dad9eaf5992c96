"""Additions of the `torch.compile` backend to a compiled graph: guards, known grids, checks of whole calls."""
