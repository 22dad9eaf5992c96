"""Run `benchmarks.drift_cost.measure`."""

from benchmarks.drift_cost.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
