"""Flowcharts: Mermaid, Graphviz, Model Explorer."""
