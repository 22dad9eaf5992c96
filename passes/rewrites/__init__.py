"""The passes that rewrite a captured graph, one a file."""
