"""Reads rules from text, and from what a configuration file may hold instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from haq.errors import ConfigError
from haq.policy import parse_bits
from haq.rules.rule import EXAMPLES, Rule, RuleKind

__all__ = ["listed_rules", "parse_rule"]


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
            raise ConfigError(f"{option}: it gives no widths; write a rule like {EXAMPLES[kind]}")
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",")))
    if not all(names):
        raise ConfigError(f"{option}: a name is missing; write a rule like {EXAMPLES[kind]}")
    if odd := next((name for name in names if "=" in name), None):
        raise ConfigError(f"{option}: {odd!r} is no name of a layer; write a rule like {EXAMPLES[kind]}")
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
