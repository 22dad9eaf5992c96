"""Run `benchmarks.breakdown.measure`."""

from benchmarks.breakdown.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
