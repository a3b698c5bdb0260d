"""The command line: parses, calls one function of the library, prints."""

from segkit.cli.app import main as main
