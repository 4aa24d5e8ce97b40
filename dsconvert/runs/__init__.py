"""The folder of a run: settings, statistics, checkpoints, report."""
