"""Every export format by name; what a format needs is imported when it is used, so that `haq export` starts at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from haq.errors import ConfigError, did_you_mean
from haq.exports import text
from haq.io.files import replacing
from haq.policy import BitPolicy
from haq.runs import RunFolder
from haq.runs.relocation import Named

__all__ = ["FORMATS", "Format", "Progress", "export_run", "run_policy"]

Progress = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and how much there is."""


@dataclass(frozen=True)
class Format:
    """A way to write the result of a run; it has either `text` or `file`.

    Attributes:
        summary: What it is, for `haq export --help`.
        text: Returns what is printed, or written with `-o`.
        file: Returns the bytes of a file; it opens the network, so it is told whom to tell about that.
        default: Name of the file in the run folder when no other is given.
    """

    summary: str
    text: Callable[[RunFolder, BitPolicy], str] | None = None
    file: Callable[[RunFolder, BitPolicy, Progress, Named | None], bytes] | None = None
    default: str = ""


def _onnx(run: RunFolder, policy: BitPolicy, progress: Progress, named: Named | None) -> bytes:
    from haq.exports.onnx import to_onnx
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, progress, named)
    return to_onnx(opened.network, opened.sample, policy.scheme)


def _qonnx(run: RunFolder, policy: BitPolicy, progress: Progress, named: Named | None) -> bytes:
    from haq.exports.qonnx import to_qonnx
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, progress, named)
    return to_qonnx(opened.network, opened.sample, policy.scheme)


def _packed(run: RunFolder, policy: BitPolicy, progress: Progress, named: Named | None) -> bytes:
    from haq.exports.packed import to_packed
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, progress, named)
    return to_packed(opened.network, policy, opened.sample, opened.folded)


def _folded(run: RunFolder, policy: BitPolicy, progress: Progress, named: Named | None) -> bytes:
    from haq.exports.folded import fold_norms
    from haq.exports.packed import to_packed
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, progress, named)
    return to_packed(fold_norms(opened.network, opened.sample), policy, opened.sample, folded=True)


def _torchao(run: RunFolder, policy: BitPolicy) -> str:
    from haq.exports.torchao import to_torchao

    return to_torchao(policy, run.read_layers())


FORMATS: dict[str, Format] = {
    "json": Format("bits of every layer, see policy.schema.json", text=lambda run, policy: text.to_json(policy)),
    "yaml": Format("the same as YAML", text=lambda run, policy: text.to_yaml(policy)),
    "csv": Format("table of layers", text=lambda run, policy: text.to_csv(text.rows(run, policy))),
    "markdown": Format("the same for a ticket", text=lambda run, policy: text.to_markdown(text.rows(run, policy))),
    "onnx": Format("QDQ with INT4, INT8, ... for onnxruntime", file=_onnx, default="model.onnx"),
    "qonnx": Format("Quant nodes of any width for FINN and hls4ml", file=_qonnx, default="model.qonnx.onnx"),
    "packed": Format("codes at their true width, safetensors", file=_packed, default="model.safetensors"),
    "packed-folded": Format("the same, batch norms folded", file=_folded, default="model.folded.safetensors"),
    "torchao": Format("a config that torchao.quantize_ takes", text=_torchao),
}
"""Name of a format → what writes it."""


def run_policy(run: RunFolder) -> BitPolicy:
    """Returns the widths that a run chose, with the scheme that it searched with.

    Raises:
        ConfigError: The run has no result.
    """
    return run.read_best().policy.with_scheme(run.read_config().scheme)


def export_run(
    run: RunFolder,
    format: str,
    out: Path | None = None,
    progress: Progress = lambda task, done, total: None,
    named: Named | None = None,
) -> str | Path:
    """Exports the result of a run.

    Args:
        run: A run with a result.
        format: Key of `FORMATS`.
        out: File to write; by default, text is returned and other formats have a name in the run folder.
        progress: Is told what is done, where that takes long.
        named: What takes the place of the model and data that the run names, where a format opens them.

    Returns:
        The text, or the file when one was written.

    Raises:
        ConfigError: The format is not known, cannot express the policy or lacks a package, the run has no result, or
            the file cannot be written. Nothing is left half-written.
        DataError: The data cannot be opened, or is not the run's.
        ModelError: The network cannot be opened, or is not the run's.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}; known: {', '.join(FORMATS)}")
    chosen, policy = FORMATS[format], run_policy(run)
    if chosen.text is not None:
        written = chosen.text(run, policy)
        if out is None:
            return written
        content = written.encode()
    else:
        assert chosen.file is not None
        out = out or run.path / chosen.default
        content = chosen.file(run, policy, progress, named)
    try:
        with replacing(out) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {str(out)!r}: {error.strerror}") from None
    return out
