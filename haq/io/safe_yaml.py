"""Reading YAML from strangers, of any size and content, without running code or running out of memory."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from typing import Any

import yaml

from haq.errors import HaqError

__all__ = ["parse_yaml", "read_bytes", "read_text", "read_yaml", "reason_of"]

_MOST_MIB = 8
_MOST_NODES = 2_000_000  # with every alias expanded; a few lines of aliases of aliases can stand for billions


def read_yaml(file: Traversable, what: str, error: type[HaqError]) -> Any:
    """Reads a YAML file; JSON is YAML, too.

    Args:
        file: Any path, including a pipe.
        what: Description of the file for messages, such as "policy 'bits.json'".
        error: Raised, with a message of one line, if anything is wrong with the file.
    """
    try:
        return parse_yaml(read_text(file))
    except (OSError, ValueError) as failure:
        raise error(f"cannot read {what}: {reason_of(failure)}") from None


def reason_of(failure: OSError | ValueError) -> str:
    """Returns one line that says why a file could not be read, without its name."""
    reason = failure.strerror if isinstance(failure, OSError) else None
    return reason or " ".join(str(failure).split())


def read_text(file: Traversable, most_mib: int = _MOST_MIB) -> str:
    """Returns the content of a text file, without the byte order mark that some editors add.

    Args:
        file: Any path, including a pipe.
        most_mib: Largest size in MiB; the default is enough for files written by hand.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8, or too large.
    """
    try:
        return read_bytes(file, most_mib).decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise ValueError(f"it is not UTF-8 text (byte {failure.start}); save it as UTF-8") from None


def read_bytes(file: Traversable, most_mib: int) -> bytes:
    """Returns the content of a file.

    Args:
        file: Any path, including a pipe.
        most_mib: Largest size in MiB.

    Raises:
        OSError: It cannot be read.
        ValueError: It is too large.
    """
    with file.open("rb") as stream:
        content = stream.read((most_mib << 20) + 1)  # a device may never end
    if len(content) > most_mib << 20:
        raise ValueError(f"it is larger than {most_mib} MiB; give the right file")
    return content


def parse_yaml(text: str) -> Any:
    """Returns the data of a YAML document.

    Raises:
        ValueError: It is not YAML, holds more than plain data, has a duplicate key, or aliases that expand too far.
    """
    try:
        return yaml.load(text, _Loader)  # nosec B506  # a SafeLoader
    except RecursionError:
        raise ValueError("it is nested too deeply; write it flat") from None
    except yaml.MarkedYAMLError as failure:
        said = ", ".join(filter(None, (failure.context, failure.problem)))
        mark = failure.problem_mark or failure.context_mark
        raise ValueError(f"{said} (line {mark.line + 1}, column {mark.column + 1})" if mark else said) from None
    except yaml.reader.ReaderError as failure:
        raise ValueError(f"the character {chr(failure.character)!r} is not allowed in YAML; remove it") from None
    except (OverflowError, TypeError, AttributeError) as failure:  # raised by PyYAML itself, for odd dates and keys
        raise ValueError(f"it is not plain YAML: {failure}") from None


class _Loader(yaml.SafeLoader):
    """Refuses two things that PyYAML accepts silently: duplicate keys, and aliases of aliases of aliases."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        self._check_size(node)
        return self.construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} occurs twice; keep one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _check_size(self, root: yaml.Node) -> None:
        sizes: dict[int, int] = {}

        def size(node: yaml.Node) -> int:
            known = sizes.get(id(node))
            if known is None:
                sizes[id(node)] = _MOST_NODES  # until it is known; an alias of a node that contains it has no end
                parts = node.value if isinstance(node, yaml.CollectionNode) else ()
                inner = (side for part in parts for side in (part if isinstance(part, tuple) else (part,)))
                known = sizes[id(node)] = 1 + sum(map(size, inner))
            return known

        if size(root) > _MOST_NODES:
            problem = "its aliases (*name) expand to too much; write the values out"
            raise yaml.constructor.ConstructorError(None, None, problem, root.start_mark)
