"""The files that hold generators: detect, open, inspect, convert and save them."""
