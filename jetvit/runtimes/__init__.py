"""What runs a written file: the callable that `jetvit.load` returns, and the runtimes behind it."""
