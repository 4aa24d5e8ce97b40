"""Read and write a pickle as inert data; nothing in it runs. Knows nothing of GANs."""
