"""Official Projected GAN."""
