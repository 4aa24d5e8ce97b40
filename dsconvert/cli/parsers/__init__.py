"""What each command takes: one module a command, ``HELP``, ``add`` and perhaps ``check``."""
