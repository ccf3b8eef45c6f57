"""Analyses of a trace: summaries, frame latency, comparison, roofline, idle time, stragglers, SQL."""
