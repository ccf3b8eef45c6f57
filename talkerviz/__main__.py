"""`python -m talkerviz`, for `torchrun -m talkerviz`."""

from talkerviz.cli import main

main()
