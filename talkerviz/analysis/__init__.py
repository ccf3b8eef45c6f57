"""Analyses of a trace: summary, frame latency, comparison, roofline, idle time, stragglers, SQL."""
