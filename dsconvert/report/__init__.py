"""Costs (fvcore), tables (rich) and JSON. Nothing here prints."""
