"""Generation: the loop from a prompt to frames of codes."""
