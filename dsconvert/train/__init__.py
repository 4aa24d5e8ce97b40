"""Training: from scratch, fine-tuned, and what both are made of.

Plain functions over a generator, a discriminator, a data set and a configuration; nothing here
knows a GAN codebase, which is the adapters' business.
"""
