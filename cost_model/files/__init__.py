"""Files that other people may have written: locked, checked before use, and written as a whole."""
