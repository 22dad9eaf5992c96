"""The tasks of a search: segmentation, depth or features, with their heads and metrics."""
