"""Coverage-guided fuzzing: `python -m tests.fuzz NAME [options of libFuzzer]`; without a name, prints all names.

Needs Atheris, which the extra `fuzz` brings.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Runs libFuzzer on the parser that the first argument names, from its valid seeds."""
    import atheris

    with atheris.instrument_imports(include=["haq", "yaml"]):
        from tests.fuzz.parsers import PARSERS, SEEDS, check

    if len(sys.argv) < 2 or sys.argv[1] not in PARSERS:
        print(*PARSERS)
        return
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], lambda content: check(name, content) and None)
        atheris.Fuzz()


main()
