"""What each command does: one module a command, with ``run(options)``; imported when it runs."""
