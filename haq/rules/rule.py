"""One rule, and the layers that it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from haq.errors import ConfigError, did_you_mean, first_names

__all__ = ["EXAMPLES", "RULES", "Rule", "RuleKind"]

RuleKind = Literal["pin", "float", "bits_of", "tie"]

RULES: tuple[RuleKind, ...] = get_args(RuleKind)
"""Kinds of rules, which are also names of options."""

EXAMPLES: dict[RuleKind, str] = {
    "pin": "head.*=8/8", "float": "lstm*", "bits_of": "enc.*=4,8", "tie": "q_proj,k_proj,v_proj"
}  # fmt: skip
"""A rule of each kind, for messages."""

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        kind: What it says: a pair of widths, floating point, candidate widths, or a tie.
        text: As it was written.
        names: Layers that it is for: paths, last parts of paths, or globs, which match whole paths.
        w_bits: Widths of weights; none for kinds without widths.
        a_bits: Widths of activations; `None` if the rule does not give them.
    """

    kind: RuleKind
    text: str
    names: tuple[str, ...]
    w_bits: tuple[int, ...] = ()
    a_bits: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"--{self.kind.replace('_', '-')} {self.text}"

    def layers(self, known: Sequence[str]) -> list[str]:
        """Returns the layers that the rule is for, in the network's order.

        A glob is for all whole paths that match it. A name is for the layer of that path, or else for every layer whose
        path ends so.

        Args:
            known: Paths of all layers.

        Raises:
            ConfigError: One of the names is of no layer.
        """
        found: set[str] = set()
        for name in self.names:
            found.update([name] if name in known else self._matches(name, known))
        return [layer for layer in known if layer in found]

    def groups(self, known: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns the layers that a tie is for, by groups that are tied.

        A rule of names ties the layers of each parent, such as the three projections of each block. A rule with a glob
        ties all its layers to each other.

        Args:
            known: Paths of all layers.

        Raises:
            ConfigError: One of the names is of no layer, or of layers without another one to be tied to.
        """
        matches = {name: self._matches(name, known) for name in self.names}
        together = any(_GLOB.search(name) for name in self.names)
        parents: dict[str, list[str]] = {}
        for layer in known:
            for name in (name for name in self.names if layer in matches[name]):
                parents.setdefault("" if together else layer.removesuffix(name), []).append(layer)
        groups = [tuple(group) for layers in parents.values() if len(group := dict.fromkeys(layers)) > 1]
        tied = {layer for group in groups for layer in group}
        for layers in matches.values():
            if not tied & {*layers}:
                raise ConfigError(
                    f"{self}: it ties {layers[0]!r} to no other layer; name at least two layers of one parent with "
                    f"commas between them, such as {EXAMPLES['tie']}, or give a glob of whole paths"
                )
        return groups

    def _matches(self, name: str, known: Sequence[str]) -> list[str]:
        if _GLOB.search(name):
            found = [layer for layer in known if fnmatchcase(layer, name)]
        else:
            found = [layer for layer in known if layer == name or layer.endswith(f".{name}")]
        if not found:
            raise ConfigError(
                f"{self}: no layer matches {name!r}{_meant(name, known)}; the layers are {first_names(known)}"
            )
        return found


def _meant(name: str, known: Sequence[str]) -> str:
    """Returns what a name that matches no layer may have been meant to be, for a message."""
    if any(layer.startswith(f"{name}.") for layer in known):  # it is a module that holds layers
        return f" (did you mean '{name}.*'?)"
    parts = dict.fromkeys((*known, *(part for layer in known for part in layer.split("."))))
    return did_you_mean(_GLOB.sub("", name).strip(".]"), parts)
