"""Files, cache folder, downloads, devices, processes, progress, and numbers as text."""
