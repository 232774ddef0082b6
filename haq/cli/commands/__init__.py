"""One file for each command or pair of commands."""
