"""The result of a search for other programs: widths as text, and networks as files.

from haq.exports import FORMATS, export_run
from haq.exports.packed import load_packed
"""

from haq.exports.formats import FORMATS, Format, export_run

__all__ = ["FORMATS", "Format", "export_run"]
