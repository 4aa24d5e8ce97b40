"""Each setting once: its default, range and choices. Imports no torch."""
