"""Thinker outputs for the talker, captured from transformers."""
