"""dsconvert: make an existing GAN generator small and fast without losing its pictures."""
