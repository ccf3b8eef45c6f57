"""Which talkerviz this is: traces note it, and so does the package."""

__version__ = "0.1.0"
