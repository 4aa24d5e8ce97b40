"""The discriminator of Projected GAN, its frozen backbone, and its official file format."""
