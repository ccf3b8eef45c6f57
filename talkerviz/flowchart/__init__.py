"""A Trace as something that can be drawn."""
