"""Run `benchmarks.end_to_end.measure`."""

from benchmarks.end_to_end.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
