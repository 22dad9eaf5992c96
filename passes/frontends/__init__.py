"""Capture: a model, a Dynamo graph or an ONNX file becomes a pre-dispatch ATen graph."""
