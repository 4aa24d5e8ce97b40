"""Images in and out: data sets, the order of training, picture files."""
