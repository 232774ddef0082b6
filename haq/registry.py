"""Registries: agents, accelerators, schemes and other things by name, to which users can add their own.

The same lookup finds what ships with haq, what an installed plugin provides, what a script registers, and what a user's
file defines. Nothing is imported before it is looked up, so that `haq --help` can list names quickly.

    from haq.registry import AGENTS

    @AGENTS.register("mine")
    def mine(task): ...

    # or, in the pyproject.toml of a package
    # [project.entry-points."haq.agents"]
    # mine = "my_package.my_agent:mine"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, overload

from haq.errors import ConfigError, HaqError, HardwareError, ModelError, did_you_mean
from haq.io.user_code import is_reference, load_named

__all__ = ["ACCELERATORS", "AGENTS", "EXPORTS", "LAYERS", "MODELS", "REGISTRIES", "REPORTS", "SCHEMES", "Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Things of one kind by name, in the order in which they are listed.

    Args:
        kind: The kind, for messages, such as `agent`.
        group: Entry-point group for plugins, such as `haq.agents`; empty if plugins cannot add any.
        builtin: Name → `module:attribute`.
        error: Raised for an unknown name, and if loading fails.

    Examples:
        >>> tools = Registry("tool", "", {"loads": "json:loads"})
        >>> tools["loads"]("[1]")
        [1]
        >>> tools.register("twice", lambda text: 2 * text)("a")
        'aa'
        >>> list(tools)
        ['loads', 'twice']
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], error: type[HaqError] = ConfigError) -> None:
        self.kind, self.group, self._error = kind, group, error
        self._builtin = dict(builtin)
        self._added: dict[str, T] = {}
        self._opened: dict[str, T] = {}
        self.changes = 0
        """Grows with everything that is registered, so that answers that depend on it can be renewed."""
        self.replaced: list[T] = []
        """What other things were registered in place of, by a cell or a file that was run again."""

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages."""
        return {point.name: point for point in (entry_points(group=self.group) if self.group else ())}

    @property
    def _plugins(self) -> dict[str, EntryPoint]:
        """The entry points that count: they cannot replace a name that ships with haq."""
        return {name: point for name, point in self._found.items() if name not in self._builtin}

    def __iter__(self) -> Iterator[str]:
        """Yields all names, those that ship with haq first."""
        return iter(dict.fromkeys([*self._builtin, *self._plugins, *self._added]))

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._added or name in self._plugins

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def beyond(self) -> tuple[str, ...]:
        """Names that do not ship with haq."""
        return tuple(name for name in self if name not in self._builtin)

    @property
    def plugins(self) -> dict[str, str]:
        """Name → the installed package that provides it."""
        return {name: _package(point) for name, point in self._plugins.items()}

    def plugin_problems(self) -> list[str]:
        """Returns what is wrong with plugins: names that ship with haq, and those that cannot be loaded."""
        taken = [
            f"{self.kind} {name!r} of the package {_package(point)!r} is hidden by haq's own; it needs another name"
            for name, point in self._found.items()
            if name in self._builtin
        ]
        return taken + [reason for name in self._plugins if (reason := self._reason(name))]

    def _reason(self, name: str) -> str:
        try:
            self[name]
        except HaqError as error:
            return str(error)
        return ""

    def get(self, name: str, default: Any = None) -> Any:
        """Returns what has this name, or the default where nothing has."""
        return self[name] if name in self else default  # noqa: SIM401  # this is `get`

    def check(self, name: str, option: str = "") -> None:
        """Raises an error if the name is unknown; a reference to a user's file is not opened.

        Args:
            name: The name as the user gives it.
            option: The option that it was given for, for the message.

        Raises:
            HaqError: The name is unknown.
        """
        if name not in self and not is_reference(name):
            given = f"{option} {name}" if option else f"unknown {self.kind} {name!r}"
            known = ", ".join([*self, f"file.py:NAME for your own {self.kind}"])
            raise self._error(f"{given}{did_you_mean(name, self)}: use {known}")

    def __getitem__(self, name: str) -> T:
        """Returns what has this name; never runs a user's file.

        Raises:
            HaqError: The name is unknown, or a plugin fails to load.
        """
        for known in (self._added, self._opened):
            if name in known:
                return known[name]
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            found: T = getattr(import_module(module), attribute)
            return found
        if name in self._plugins:
            try:
                loaded: T = self._plugins[name].load()
            except Exception as failure:  # a plugin can raise anything
                reason = " ".join(str(failure).split())[:300]
                raise self._error(
                    f"{self.kind} {name!r} of the package {self.plugins[name]!r} cannot be loaded: "
                    f"{type(failure).__name__}: {reason}; update or uninstall that package"
                ) from failure
            return loaded
        raise self._error(f"unknown {self.kind} {name!r}{did_you_mean(name, self)}; use one of {', '.join(self)}")

    def resolve(self, text: str) -> T:
        """Returns what has this name, or what `file.py:name` defines; the file is run.

        Args:
            text: A name, `file.py:name` or `package.module:name`, as the user gives it. For text from a file that
                may come from a stranger, use `registry[name]` instead.

        Raises:
            HaqError: The name is unknown, or the file cannot be run or does not define it.
        """
        if text in self or not is_reference(text):
            return self[text]
        return self.remember(text, load_named(text, self.kind, self._error))

    def remember(self, text: str, value: T) -> T:
        """Stores what a user gave, so that `registry[text]` finds it again in this process; it is not listed."""
        self._opened[text] = value
        return value

    @property
    def added(self) -> dict[str, T]:
        """What was registered in this process."""
        return dict(self._added)

    def adopt(self, added: Mapping[str, T]) -> None:
        """Adds what was registered in another process, which is not run again here; names that are known stay."""
        for name, value in added.items():
            if name not in self:
                self.register(name, value)

    @overload
    def register(self, name: str) -> Callable[[T], T]: ...

    @overload
    def register(self, name: str, value: T) -> T: ...

    def register(self, name: str, value: T | None = None) -> Any:
        """Adds something under a name in this process; without a value, returns a decorator that does.

        A name that was registered before is replaced, so that a notebook cell can be run again.

        Args:
            name: A name without spaces, commas, colons and slashes.
            value: What to add.

        Raises:
            HaqError: The name ships with haq, or cannot be used on a command line.
        """
        if name in self._builtin:
            raise self._error(f"{self.kind} {name!r} ships with haq; register yours under another name")
        if not name or any(c.isspace() or c in ",:/\\" for c in name):
            raise self._error(
                f"{self.kind} {name!r}: a name must have no spaces, commas, colons or slashes; give another one"
            )
        if value is None:
            return lambda value: self.register(name, value)
        self.replaced += [self._added[name]] if name in self._added else []
        self._added[name] = value
        self.changes += 1
        return value


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "?"


_AGENTS = "haq.search.agents"
AGENTS: Registry[Any] = Registry(
    "agent",
    "haq.agents",
    {
        "predictor": f"{_AGENTS}.guided:PREDICTOR",
        "ddpg": f"{_AGENTS}.dreamer:DDPG_IN_IMAGINATION",
        "haq": f"{_AGENTS}.episode_agent:HAQ",
        "evolution": f"{_AGENTS}.evolution:EVOLUTION",
        "ilp": f"{_AGENTS}.baselines:ILP",
        "random": f"{_AGENTS}.baselines:RANDOM",
        "uniform": f"{_AGENTS}.baselines:UNIFORM",
    },
)
"""Agents that propose policies: `haq.search.agents.AgentKind`, or a function from a `Task` to an `Agent`."""

_MODELS = "haq.hwmodels.accelerators"
ACCELERATORS: Registry[Any] = Registry(
    "kind of accelerator",
    "haq.accelerators",
    {
        "avr": f"{_MODELS}.avr:Avr",
        "bismo": f"{_MODELS}.bismo:Bismo",
        "bitfusion": f"{_MODELS}.bitfusion:BitFusion",
        "cortex-m": f"{_MODELS}.cortex_m:CortexM",
        "gpu": f"{_MODELS}.gpu:Gpu",
        "npu": f"{_MODELS}.npu:Npu",
    },
    HardwareError,
)
"""Cost models by their `kind` in a hardware file: dataclasses that implement `haq.hwmodels.Hardware`."""

_SCHEMES = "haq.quant.schemes"
SCHEMES: Registry[Any] = Registry(
    "scheme",
    "haq.schemes",
    {
        "linear": f"{_SCHEMES}.linear:LINEAR",
        "asymmetric": f"{_SCHEMES}.linear:ASYMMETRIC",
        "power-of-two": f"{_SCHEMES}.linear:POWER_OF_TWO",
        "ristretto": f"{_SCHEMES}.ristretto:RISTRETTO",
        "kmeans": f"{_SCHEMES}.kmeans:KMEANS",
        "lqnets": f"{_SCHEMES}.lqnets:LQNETS",
        "pact": f"{_SCHEMES}.pact:PACT",
        "lsq": f"{_SCHEMES}.lsq:LSQ",
        "qil": f"{_SCHEMES}.qil:QIL",
        "nested": f"{_SCHEMES}.nested:NESTED",
        "dorefa": f"{_SCHEMES}.dorefa:DOREFA",
        "wrpn": f"{_SCHEMES}.wrpn:WRPN",
        "abcnet": f"{_SCHEMES}.abcnet:ABCNET",
        "inq": f"{_SCHEMES}.inq:INQ",
        "twn": f"{_SCHEMES}.twn:TWN",
        "ttq": f"{_SCHEMES}.ttq:TTQ",
        "binaryconnect": f"{_SCHEMES}.binaryconnect:BINARYCONNECT",
        "bwn": f"{_SCHEMES}.bwn:BWN",
        "bnn": f"{_SCHEMES}.bnn:BNN",
        "xnor": f"{_SCHEMES}.xnor:XNOR",
        "fp16": f"{_SCHEMES}.reduced:FP16",
        "bf16": f"{_SCHEMES}.reduced:BF16",
        "hybrid": f"{_SCHEMES}.linear:HYBRID",
    },
)
"""Quantization schemes, `haq.quant.schemes.Scheme`; the ones for most users come first."""

_FORMATS = "haq.exports.formats"
EXPORTS: Registry[Any] = Registry(
    "format",
    "haq.exports",
    {
        "json": f"{_FORMATS}:JSON",
        "yaml": f"{_FORMATS}:YAML",
        "csv": f"{_FORMATS}:CSV",
        "markdown": f"{_FORMATS}:MARKDOWN",
        "onnx": f"{_FORMATS}:ONNX",
        "qonnx": f"{_FORMATS}:QONNX",
        "packed": f"{_FORMATS}:PACKED",
        "packed-folded": f"{_FORMATS}:PACKED_FOLDED",
        "torchao": f"{_FORMATS}:TORCHAO",
    },
)
"""Export formats of a result, `haq.exports.Format`."""

_KINDS = "haq.layers.kinds"
LAYERS: Registry[Any] = Registry(
    "kind of layer",
    "haq.layers",
    {
        "convolution": f"{_KINDS}.convolution:CONVOLUTION",
        "transposed": f"{_KINDS}.transposed:TRANSPOSED",
        "linear": f"{_KINDS}.linear:LINEAR",
        "embedding": f"{_KINDS}.embedding:EMBEDDING",
    },
    ModelError,
)
"""Kinds of layers that can be quantized, `haq.layers.kinds.LayerKind`; of two that match, the last one counts."""

MODELS: Registry[Any] = Registry(
    "model",
    "",
    {
        "digits-resnet": "haq.models.resnet:digits_resnet",
        "mobilenet-v1": "haq.models.mobilenet:MobileNetV1",
        "mobilenet-v2": "haq.models.mobilenet:MobileNetV2",
        "resnet20": "haq.models.resnet:resnet20",
        "resnet32": "haq.models.resnet:resnet32",
        "resnet56": "haq.models.resnet:resnet56",
    },
    ModelError,
)
"""Built-in networks: functions of `num_classes` and `in_channels`."""

REPORTS: Registry[Any] = Registry("report", "", {"html": "haq.report:write_page"})
"""Functions that write the page of a run; `haq.search.results.Result.report` uses them."""

REGISTRIES = (AGENTS, ACCELERATORS, SCHEMES, EXPORTS, LAYERS)
"""The registries that plugins can add to."""
