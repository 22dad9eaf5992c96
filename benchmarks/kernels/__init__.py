"""The mixers on a GPU: timed, checked, and compiled for a Hopper GPU where there is none."""
