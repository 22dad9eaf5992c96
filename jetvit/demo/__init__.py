"""The demo: a small model of drawn scenes, searched and trained on a CPU in minutes."""
