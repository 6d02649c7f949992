"""The command line: speaks to a server, or to the data folder where no server is needed."""

from automagik.cli.root import app, main

__all__ = ["app", "main"]
