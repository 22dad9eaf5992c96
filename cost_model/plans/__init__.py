"""The `Plan`: its choices, the names and the fingerprint that it is matched by, and its file."""
