"""The discriminator of Projected GAN and its backbone."""
