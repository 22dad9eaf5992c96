"""The editable graph, and the operations that change it safely."""
