"""What every layer may use: writing files whole, and naming the packages that are missing."""
