"""Renderers of traces: charts, tables, terminal output, files for viewers."""
