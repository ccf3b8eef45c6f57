"""Data flow of a run: operations, and edges from each to the readers of its result."""
