"""A Trace on screen and in files: one module a format."""
