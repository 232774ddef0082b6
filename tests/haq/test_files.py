from __future__ import annotations

import os
from pathlib import Path

import pytest

from haq.files import making, replacing, write_text


def test_text_is_written_as_utf8_into_folders_that_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    write_text(path, "≤ 10 µs\n")
    assert path.read_bytes() == "≤ 10 µs\n".encode()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new, but")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_the_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".parquet"
    assert path.read_text() == "half"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    before = os.umask(0o027)
    try:
        write_text(path, "text")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_folder_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with making(path) as temporary:
        (temporary / "config.yaml").write_text("seed: 0")
        assert not path.exists()
    assert os.listdir(path) == ["config.yaml"]
    assert os.listdir(path.parent) == ["one"]


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    def make_half() -> None:
        with making(tmp_path / "one") as temporary:
            (temporary / "config.yaml").write_text("seed: 0")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        make_half()
    assert os.listdir(tmp_path) == []
