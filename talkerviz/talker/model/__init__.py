"""Modules of the talker."""
