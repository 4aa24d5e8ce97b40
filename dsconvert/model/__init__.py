"""One PyTorch model: its graph, its convolutions, its inputs, its norms, and copies of it."""
