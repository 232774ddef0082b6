from __future__ import annotations

import os
from pathlib import Path

import pytest

from haq.errors import ConfigError
from haq.io.files import cache_folder, making, replacing, writable, write_text
from haq.io.output_paths import check_file, check_folder


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


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    """Also /dev/null, which root would replace by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_file("--output", pipe)
    write_text(pipe, "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]
    assert pipe.is_fifo()
    write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_an_error() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_text(Path("/dev/full"), "text")


def test_whether_a_folder_can_be_written_is_tried(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for folder, expected in (("", True), ("new/one", True), ("file", False), ("file/new", False), ("link", False)):
        assert writable(tmp_path / folder) is expected
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    if os.path.isdir("/proc/self"):
        assert not writable(Path("/proc/nohome"))  # where permissions would let root write
        with pytest.raises(ConfigError, match="'/proc' is not a writable folder; give another --out"):
            check_folder(Path("/proc/nohome/run"))


def test_the_cache_is_the_same_folder_wherever_a_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAQ_CACHE", "cache")
    assert cache_folder() == tmp_path / "cache"
