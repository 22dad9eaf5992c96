"""Softmax attention of all tokens to all tokens, with the rotation of q and k inside."""
