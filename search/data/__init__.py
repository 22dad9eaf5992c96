"""The images of a search: samples, splits, batches, and the processes that share them."""
