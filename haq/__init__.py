"""Automated mixed-precision search: the bit-width of every layer, inside a hardware budget."""

from pathlib import Path

__version__ = "0.1.0"
__all__ = ["__version__"]

# In a source checkout the sub-packages lie beside this folder (`envs/`, not `haq/envs/`), and `./haq` shadows an
# installed wheel whenever the current directory is on `sys.path`. Extending the package's path makes `haq.envs` the
# same import in both cases. The name in pyproject.toml is checked so that nobody else's folders are ever imported.
_checkout = Path(__file__).resolve().parent.parent
_project_file = _checkout / "pyproject.toml"
if _project_file.is_file() and '\nname = "haq"\n' in _project_file.read_text(encoding="utf-8"):
    __path__.append(str(_checkout))
