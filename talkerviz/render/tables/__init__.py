"""Latency tables in files: Markdown, LaTeX, HTML, CSV, JSON."""
