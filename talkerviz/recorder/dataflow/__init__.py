"""Data flow between module calls: which operation made what each call reads."""
