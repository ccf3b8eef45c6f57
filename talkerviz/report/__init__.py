"""Profiling reports: a folder with a page, tables, charts and files for other viewers."""
