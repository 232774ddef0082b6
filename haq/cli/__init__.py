"""The command line of haq; `haq --help` lists its commands."""

from haq.cli.main import main

__all__ = ["main"]
