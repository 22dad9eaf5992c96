"""Run `benchmarks.cost_model.measure`."""

from benchmarks.cost_model.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
