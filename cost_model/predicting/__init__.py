"""Predicted latencies: rooflines, boosted trees, intervals, and the cost of whole graphs on a device."""
