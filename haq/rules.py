"""Rules of a search for some of its layers: pinned, in floating point, with candidates of their own, or tied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from haq.errors import ConfigError, did_you_mean, first_names
from haq.policy import parse_bits

__all__ = ["RULES", "Rule", "listed_rules", "parse_rule"]

RuleKind = Literal["pin", "float", "bits_of", "tie"]

RULES: tuple[RuleKind, ...] = get_args(RuleKind)
"""Kinds of rules, which are also names of options."""

_WRITTEN: dict[RuleKind, str] = {
    "pin": "head.*=8/8", "float": "lstm*", "bits_of": "enc.*=4,8", "tie": "q_proj,k_proj,v_proj"
}  # fmt: skip
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
                    f"commas between them, such as {_WRITTEN['tie']}, or give a glob of whole paths"
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


def parse_rule(kind: RuleKind, text: str) -> Rule:
    """Reads a rule.

    Args:
        kind: One of `RULES`.
        text: Names with commas between them; then `=` and widths, for the kinds that give widths.

    Raises:
        ConfigError: It cannot be read.

    Examples:
        >>> rule = parse_rule("bits_of", "enc.*,stem=4,8/8")
        >>> rule.names, rule.w_bits, rule.a_bits
        (('enc.*', 'stem'), (4, 8), (8,))
        >>> parse_rule("tie", "q_proj,k_proj").names
        ('q_proj', 'k_proj')
    """
    option, widths = Rule(kind, text, ()), ""
    listed = text
    if kind in ("pin", "bits_of"):
        listed, equals, widths = text.rpartition("=")
        if not equals:
            raise ConfigError(f"{option}: it gives no widths; write a rule like {_WRITTEN[kind]}")
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",")))
    if not all(names):
        raise ConfigError(f"{option}: a name is missing; write a rule like {_WRITTEN[kind]}")
    if odd := next((name for name in names if "=" in name), None):
        raise ConfigError(f"{option}: {odd!r} is no name of a layer; write a rule like {_WRITTEN[kind]}")
    if not widths and kind in ("float", "tie"):
        return Rule(kind, text, names)
    weights, slash, inputs = widths.partition("/")
    w_bits = parse_bits(weights, str(option))
    a_bits = parse_bits(inputs, str(option)) if slash else None
    if kind == "pin" and (len(w_bits) > 1 or len(a_bits or ()) > 1):
        raise ConfigError(f"{option}: a pin is one pair of widths, such as 8/8; --bits-of gives several to choose from")
    return Rule(kind, text, names, w_bits, a_bits)


def listed_rules(kind: RuleKind, value: object) -> object:
    """Returns rules of a kind as a tuple of text, from the forms that a configuration file may have.

    Args:
        kind: One of `RULES`.
        value: Text of one rule; a list of such text, or, for ties, of lists of names; or, for kinds with widths, a
            mapping of names to widths. Anything else is returned as it is, to be refused.

    Examples:
        >>> listed_rules("pin", {"head.*": 8, "stem": "4/8"}), listed_rules("tie", [["q_proj", "k_proj"]])
        (('head.*=8', 'stem=4/8'), ('q_proj,k_proj',))
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (value.strip(),)
    if isinstance(value, Mapping) and kind in ("pin", "bits_of"):
        return tuple(f"{name}={_commas(widths)}" for name, widths in value.items())
    if isinstance(value, Sequence):
        return tuple(_commas(rule) if kind == "tie" and isinstance(rule, list | tuple) else rule for rule in value)
    return value


def _commas(value: object) -> str:
    """Returns a list with commas between its parts, and anything else as text; `null` is empty."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
