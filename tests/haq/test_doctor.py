"""What `haq doctor` finds, on this machine and on worse ones."""

import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from click.testing import CliRunner

from haq import doctor
from haq.cli.main import cli

Usage = namedtuple("Usage", "total used free")


def finding(name: str) -> doctor.Finding:
    return next(found for found in doctor.examine() if found.name == name)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["doctor", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout


def test_everything_is_looked_at() -> None:
    code, shown = run("--json")
    found = json.loads(shown)
    assert (code, found["usable"]) == (0, True)
    assert found["packages"]["torch"]
    assert found["cores"]["usable"] >= 1
    assert found["memory"].keys() == {"total_bytes", "available_bytes"}
    assert found["processor"]["kernels"] in ("avx512", "avx2", "neon", "plain")
    assert found["gpu"].keys() >= {"cuda", "devices"}
    assert found["extras"].keys() >= {"hf", "onnx", "timm"}
    assert found["current_folder"]["writable"]
    assert "Ray" not in shown or found["problems"]


def test_caches_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE", str(tmp_path))
    (tmp_path / "digits.pt").write_bytes(bytes(1500))
    found = finding("cache")
    assert found.text == f"{tmp_path}, 1.50 kB"
    assert not found.problem
    for spoilt in ("digits.pt", "digits.pt/inside"):
        monkeypatch.setenv("HAQ_CACHE", str(tmp_path / spoilt))
        assert "set HAQ_CACHE" in finding("cache").problem
        assert not finding("cache").data["writable"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write")
def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as another user; permissions alone would let root write into /proc."""
    monkeypatch.setenv("HOME", "/proc/nohome")
    for name in ("HAQ_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    code, shown = run("--quiet")
    assert code == 0
    told = " ".join(shown.split())
    assert "! home: libraries cannot write to it; set HOME to a folder of yours, or HF_HOME" in told
    assert "! cache: the built-in network is trained every time; set HAQ_CACHE to a folder of yours" in told


@pytest.mark.skipif(sys.platform != "linux", reason="Ray reads TMPDIR on Linux alone")
def test_temporary_files_where_ray_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
        assert f"{tmp_path}/none cannot be written; set TMPDIR to a writable" in finding("temporary files").problem
        monkeypatch.setenv(name, str(tmp_path))
    assert not finding("temporary files").problem


def test_missing_extras_come_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "onnx" else installed(name) or "99")
    found = finding("extras")
    assert "onnx missing: pip install 'haq[onnx]'" in found.text
    assert found.data["onnx"] == {"missing": ["onnx"]}
    assert not found.problem, "nobody needs every extra"


def test_a_missing_package_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: {"ray": None, "torch": "1.0"}.get(name, installed(name)))
    code, shown = run("--quiet")
    assert code == 1
    assert " ".join(shown.split()).startswith("! packages: required: ray; torch 1.0, not <2.14,>=2.6; run")
    assert json.loads(run("--json")[1])["usable"] is False


def test_a_container_with_little(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": "1000000000"}
    files |= {"/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 60000000 kB", "/sys/fs/cgroup/memory.current": "0"}
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 99 * 10**10, 64 * 10**6))
    found = {one.name: one for one in doctor.examine()}
    assert found["cores"].problem == "a search starts a worker for each of 64 cores; give it --workers 1"
    assert found["memory"].text == "1.00 GB of 1.00 GB free"
    assert "give a search --workers 1" in found["memory"].problem
    if Path("/dev/shm").is_dir():
        assert "docker run --shm-size" in found["shared memory"].problem
    assert "100% full" in found["temporary files"].problem
    assert not any(one.fatal for one in found.values())
    code, shown = run()
    assert code == 0
    assert "! cores: a search starts a worker" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write")
def test_the_current_folder_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    assert "give --out" in finding("current folder").problem


def test_a_pytorch_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, shown = run("-q")
    assert code == 1
    assert "! GPU:" in shown
