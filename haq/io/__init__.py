"""Files and what is in them: whole or absent, safe to read, checked, and where they may be written."""
