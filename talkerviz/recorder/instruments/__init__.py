"""Instruments: what is sampled at call entry and exit beside the host clock."""
