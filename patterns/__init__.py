"""What full attention looks like in a graph. Reads graphs, never changes them."""
