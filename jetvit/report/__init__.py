"""The report of `jetvit explain`: its rows, and how text, page and plots show them."""
