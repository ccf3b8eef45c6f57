"""Phases, frames and requests of module calls."""
