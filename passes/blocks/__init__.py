"""The replacement blocks as modules."""
