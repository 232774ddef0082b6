"""Rules of a search for some of its layers: pinned, in floating point, with candidates of their own, or tied."""

from haq.rules.parsing import listed_rules, parse_rule
from haq.rules.rule import RULES, Rule, RuleKind

__all__ = ["RULES", "Rule", "RuleKind", "listed_rules", "parse_rule"]
