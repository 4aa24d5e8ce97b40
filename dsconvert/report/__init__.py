"""Results as tables (rich) and as JSON. This package returns data and never prints."""
