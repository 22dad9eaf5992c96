"""The kernels of a compiled model: which kind of work takes which time."""
