"""Output streams that lack characters, that are closed, or that a reader leaves."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from haq.cli.encodings import echo_exactly
from haq.cli.main import main

TABLE = """# hardware: Platine für µC
# batch: 1
# origin: measured
# version: kernels 1.2
layer,w_bits,a_bits,latency_ms
conv1,4,8,0.25
fc,4,8,0.0625
"""
Haq = Callable[..., tuple[int, bytes, bytes]]


@pytest.fixture
def haq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Haq:
    """Runs a command with streams as Python opens them; returns exit code, output and errors."""
    (tmp_path / "t.csv").write_text(TABLE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(encoding: str, *arguments: str) -> tuple[int, bytes, bytes]:
        streams = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patched:
            for name, stream, errors in zip(("stdout", "stderr"), streams, ("strict", "backslashreplace"), strict=True):
                patched.setattr(sys, name, io.TextIOWrapper(stream, encoding, errors))
            patched.setattr(sys, "argv", ["haq", *arguments])
            with pytest.raises(SystemExit) as end:
                main()
            sys.stdout.flush()
            sys.stderr.flush()
            return int(end.value.code or 0), streams[0].getvalue(), streams[1].getvalue()

    return run


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_characters_that_a_stream_lacks_are_replaced(haq: Haq, encoding: str) -> None:
    for arguments, said in (
        (["table", "t.csv"], "Platine f?r uC" if encoding == "ascii" else "Platine für µC"),
        (["table", "t.csv", "--quiet"], "312 us" if encoding == "ascii" else "312 µs"),
        (["hardware", "edge"], "holds       –" if encoding in ("cp1252", "utf-8") else "holds       -"),
        (["hardware"], "int8-npu"),
        (["profile", "--hardware", "edge"], "layers: "),
        (["schemes"], "linear"),
        (["--help"], "search"),
        (["table", "--help"], "layers"),
    ):
        code, shown, errors = haq(encoding, *arguments)
        assert (code, errors) == (0, b"")
        # To ASCII, click writes UTF-8
        assert said in shown.decode(encoding if "--help" not in arguments else "utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_an_error_line_in_any_encoding(haq: Haq, encoding: str) -> None:
    code, shown, errors = haq(encoding, "table", "für 层.csv")
    told = errors.decode(encoding)
    name = {"ascii": "f?r ?", "utf-8": "für 层"}.get(encoding, "für ?")
    assert (code, shown, told) == (2, b"", f"error: cost table '{name}.csv' does not exist\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_program_reads_is_never_replaced(haq: Haq, encoding: str) -> None:
    """With --quiet the exact path is printed, even if it is not text; messages escape it."""
    for name, written in (("\udcff.csv", b"\xff.csv"), ("层.csv", "层.csv".encode())):
        assert haq(encoding, "table", "t.csv", "--quiet", "-o", name) == (0, written + b"\n", b"")
        assert os.path.exists(name)
    code, shown, errors = haq(encoding, "table", "t.csv", "-o", "\udcff.csv")
    assert (code, errors, b"written: \\udcff.csv" in shown) == (0, b"", True)
    code, shown, errors = haq(encoding, "table", "\udcfe.csv")
    assert (code, errors) == (2, b"error: cost table '\\udcfe.csv' does not exist\n")


def test_half_a_character_is_no_error(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    echo_exactly("layer \ud800")
    assert capsysbinary.readouterr().out == b"layer ?\n"


def test_a_reader_that_leaves_and_streams_that_are_closed() -> None:
    def run(shell: str) -> subprocess.CompletedProcess[bytes]:
        line = f'"$0" -m haq hardware edge {shell}'
        return subprocess.run(["bash", "-o", "pipefail", "-c", line, sys.executable], capture_output=True, timeout=120)

    done = run("| (read line; echo $line)")
    assert (done.returncode, done.stdout[:4], done.stderr) == (0, b"edge", b"")
    assert run(">&- 2>&-").returncode == 0
    if os.path.exists("/dev/full"):
        done = run(">/dev/full")
        told = b"error: cannot use the output: No space left on device; give another path, or fix that one\n"
        assert (done.returncode, done.stderr) == (2, told)
