"""The command line: `haq search`, `haq report`, `haq export`."""

from haq.cli.main import main

__all__ = ["main"]
