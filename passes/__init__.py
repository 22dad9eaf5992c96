"""Graph to graph: one pass a file, a pipeline over them, and the ways in (capture) and out (emit)."""
