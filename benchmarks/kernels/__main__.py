"""Run `benchmarks.kernels.measure`."""

from benchmarks.kernels.measure import main

if __name__ == "__main__":
    raise SystemExit(main())
