"""Linear attention with a depthwise convolution on v: the JetViT block."""
