import json
from pathlib import Path

import pytest

from haq.errors import HardwareError
from haq.hwmodels.measuring.journal import Journal

HEADER = {"layers": [{"name": "conv", "kernel": (3, 3)}], "w_bits": (1, 2)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "cpu.parquet.partial", HEADER)
    journal["0:0"] = [[0.1, 1 / 3], [2e-300, 5.0]]
    journal["0:1"] = [1.0]
    return journal.path


def test_what_is_done_is_kept(path: Path) -> None:
    again = Journal(path, HEADER)
    assert "0:0" in again
    assert again["0:0"] == [[0.1, 1 / 3], [2e-300, 5.0]]
    assert "0:2" not in again
    again["0:2"] = [2.0]
    assert Journal(path, HEADER)["0:2"] == [2.0]
    assert Journal(path, HEADER)["0:1"] == [1.0]


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_torn_last_line_is_dropped(path: Path, cut: int) -> None:
    """Losing only the newline loses no line."""
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, HEADER)
    assert "0:0" in again
    assert ("0:1" in again) == (cut == 1)
    again["0:1"] = [3.0]
    assert Journal(path, HEADER)["0:1"] == [3.0]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("content", [None, b"", b'{"header": {"a": 1}}\n', b"[1]\n", b"3\n", b"not JSON\n"])
def test_another_measurement_is_refused(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(HardwareError, match="holds another measurement that was interrupted") as error:
        Journal(path, {**HEADER, "w_bits": (1, 2, 3)})
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_what_is_not_text_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HardwareError, match="cannot read") as error:
        Journal(path, HEADER)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("none", "file"):
        with pytest.raises(HardwareError, match="cannot write .*; choose a folder that can be written") as error:
            Journal(tmp_path / folder / "cpu.partial", HEADER)
        assert "\n" not in str(error.value)
