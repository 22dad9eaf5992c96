"""Run `benchmarks.targets.measure`."""

from benchmarks.targets.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
