"""Softmax attention inside the windows of a token grid; extra tokens are global."""
