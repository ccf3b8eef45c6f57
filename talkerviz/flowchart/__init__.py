"""Flowcharts: a trace folded to boxes, groups and arrows."""
