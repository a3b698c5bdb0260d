"""`python -m segkit.cli`."""

from segkit.cli import main

main()
