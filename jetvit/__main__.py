"""`python -m jetvit` is the command `jetvit`."""

from jetvit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
