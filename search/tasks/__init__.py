"""What a search optimises for: segmentation, depth or features, with their heads and metrics."""
