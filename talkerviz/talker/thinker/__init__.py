"""Capture of thinker outputs for the talker, with transformers' thinker."""
