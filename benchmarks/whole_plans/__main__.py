"""Run `benchmarks.whole_plans.measure`."""

from benchmarks.whole_plans.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
