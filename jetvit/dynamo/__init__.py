"""What the `torch.compile` backend adds around a compiled graph: guards, known grids, checks of whole calls."""
