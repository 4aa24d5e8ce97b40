"""safetensors with the architecture in the header."""
