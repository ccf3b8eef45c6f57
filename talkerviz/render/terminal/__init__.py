"""Tables and trees on the terminal."""
