"""Written files as callables, and the runtimes behind them."""
