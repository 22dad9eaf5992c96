"""Write a rewritten program for another runtime: .pt2, AOTInductor, ONNX and TensorRT."""
