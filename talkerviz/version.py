"""Version of talkerviz, in one place for the package and for traces."""

__version__ = "0.1.0"
