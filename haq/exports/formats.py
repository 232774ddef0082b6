"""Every export format; what a format needs is imported when it is used, so that `haq export` starts at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from haq.errors import ConfigError
from haq.exports import text
from haq.io.files import replacing
from haq.io.user_code import guarded
from haq.policy import BitPolicy
from haq.progress import Observer, Silent
from haq.registry import EXPORTS
from haq.runs import RunFolder
from haq.runs.relocation import Named

__all__ = ["Format", "export_run", "open_format", "run_policy"]

Text = Callable[[RunFolder, BitPolicy], str]
Content = TypeVar("Content")
File = Callable[[RunFolder, BitPolicy, Observer, Named | None], bytes]


@dataclass(frozen=True)
class Format:
    """A way to write the result of a run; it has either `text` or `file`.

    Attributes:
        summary: What it is, for `haq export --help`.
        text: Returns what is printed, or written with `-o`.
        file: Returns the bytes of a file; it may open the network, and reports progress to an `Observer`.
        default: Name of the file in the run folder when no other is given.
    """

    summary: str
    text: Text | None = None
    file: File | None = None
    default: str = ""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.file is None) or (self.file is not None and not self.default):
            raise ConfigError(f"format {self.summary!r}: give either text, or file and the default name of that file")

    def export(
        self,
        run: RunFolder,
        out: Path | None = None,
        observer: Observer | None = None,
        named: Named | None = None,
    ) -> str | Path:
        """Exports the result of a run.

        Args:
            run: A run with a result.
            out: File to write; by default, text is returned and other formats have a name in the run folder.
            observer: Receives progress while the network is opened.
            named: The model and data to use instead of those that the run names, if the format opens them.

        Returns:
            The text, or the file when one was written.

        Raises:
            ConfigError: The format cannot express the policy or lacks a package, the run has no result, or the file
                cannot be written. Nothing is left half-written.
            DataError: The data cannot be opened, or is not the run's.
            ModelError: The network cannot be opened, or is not the run's.
        """
        policy = run_policy(run)
        if self.text is not None:
            write = self.text
            written = self._checked(guarded("the format", ConfigError, lambda: write(run, policy)), str)
            if out is None:
                return written
            content = written.encode()
        else:
            file, out = self.file, out or run.path / self.default
            assert file is not None, "it is checked when a format is made"
            watching = observer or Silent()
            content = self._checked(
                guarded("the format", ConfigError, lambda: file(run, policy, watching, named)), bytes
            )
        try:
            with replacing(out) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise ConfigError(f"cannot write {str(out)!r}: {error.strerror}") from None
        return out

    def _checked(self, content: object, kind: type[Content]) -> Content:
        if not isinstance(content, kind):
            raise ConfigError(f"the format returned {type(content).__name__}; return {kind.__name__}")
        return content


def export_run(
    run: RunFolder,
    format: str,
    out: Path | None = None,
    observer: Observer | None = None,
    named: Named | None = None,
) -> str | Path:
    """Exports the result of a run in a format of `haq.registry.EXPORTS`; see `Format.export`.

    Args:
        run: A run with a result.
        format: Name of the format, or `file.py:NAME`, which is run.
        out: File to write.
        observer: Receives progress while the network is opened.
        named: The model and data to use instead of those that the run names.

    Raises:
        HaqError: The format is unknown, or as `Format.export` raises.
    """
    return open_format(format).export(run, out, observer, named)


def open_format(format: str) -> Format:
    """Returns a format by name, or that of a user's file, `file.py:NAME`, which is run.

    Raises:
        ConfigError: There is none, or it is no `Format`.
    """
    found = EXPORTS.resolve(format)
    if not isinstance(found, Format):
        raise ConfigError(f"format {format!r} is {type(found).__name__}, not a haq.exports.Format; make it one")
    return found


def run_policy(run: RunFolder) -> BitPolicy:
    """Returns the widths that a run chose, with the scheme that it searched with.

    Raises:
        ConfigError: The run has no result.
    """
    return run.read_best().policy.with_scheme(run.read_config().scheme)


def _onnx(run: RunFolder, policy: BitPolicy, observer: Observer, named: Named | None) -> bytes:
    from haq.exports.onnx import to_onnx
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, observer, named)
    return to_onnx(opened.network, opened.sample, policy.scheme)


def _qonnx(run: RunFolder, policy: BitPolicy, observer: Observer, named: Named | None) -> bytes:
    from haq.exports.qonnx import to_qonnx
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, observer, named)
    return to_qonnx(opened.network, opened.sample, policy.scheme)


def _packed(run: RunFolder, policy: BitPolicy, observer: Observer, named: Named | None) -> bytes:
    from haq.exports.packed import to_packed
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, observer, named)
    return to_packed(opened.network, policy, opened.sample, opened.folded)


def _folded(run: RunFolder, policy: BitPolicy, observer: Observer, named: Named | None) -> bytes:
    from haq.exports.folded import fold_norms
    from haq.exports.packed import to_packed
    from haq.exports.run_network import open_run

    opened = open_run(run, policy, observer, named)
    return to_packed(fold_norms(opened.network, opened.sample), policy, opened.sample, folded=True)


def _torchao(run: RunFolder, policy: BitPolicy) -> str:
    from haq.exports.torchao import to_torchao

    return to_torchao(policy, run.read_layers())


JSON = Format("bits of every layer, see policy.schema.json", text=lambda run, policy: text.to_json(policy))
YAML = Format("the same as YAML", text=lambda run, policy: text.to_yaml(policy))
CSV = Format("table of layers", text=lambda run, policy: text.to_csv(text.rows(run, policy)))
MARKDOWN = Format("the same for a ticket", text=lambda run, policy: text.to_markdown(text.rows(run, policy)))
ONNX = Format("QDQ with INT4, INT8, ... for onnxruntime", file=_onnx, default="model.onnx")
QONNX = Format("Quant nodes of any width for FINN and hls4ml", file=_qonnx, default="model.qonnx.onnx")
PACKED = Format("codes at their true width, safetensors", file=_packed, default="model.safetensors")
PACKED_FOLDED = Format("the same, batch norms folded", file=_folded, default="model.folded.safetensors")
TORCHAO = Format("a config that torchao.quantize_ takes", text=_torchao)
