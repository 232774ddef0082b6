"""The result of a search for other programs: widths as text, and networks as files.

from haq.exports import export_run
from haq.exports.packed import load_packed
"""

from haq.exports.formats import Format, export_run, open_format

__all__ = ["Format", "export_run", "open_format"]
