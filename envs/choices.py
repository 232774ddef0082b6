"""What rules make of a network's layers: which are searched, pinned or tied, and which have candidates of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from haq.errors import ConfigError
from haq.hwmodels.hardware import listed_pairs
from haq.layers import LayerSpec
from haq.policy import LayerBits
from haq.rules import Rule

__all__ = ["Choices", "Offer", "choose"]

_END = LayerBits(8, 8)


@dataclass(frozen=True)
class Offer:
    """What layers can have without rules.

    Attributes:
        hardware: Name of the hardware, for messages.
        pairs: Pairs of widths that it runs, ascending; those of weights alone where activations are not quantized.
        a_bits: Candidate widths of activations.
        weights_only: Whether activations stay in floating point.
        ends: Layers that are pinned to 8 bits unless a rule says otherwise.
        shared: Groups of layers that the hardware needs at the same widths.
    """

    hardware: str
    pairs: tuple[LayerBits, ...]
    a_bits: tuple[int, ...]
    weights_only: bool = False
    ends: tuple[str, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Choices:
    """What is left to choose.

    Attributes:
        floating: Layers that stay in floating point.
        pinned: Layer → its widths.
        candidates: Layer → the pairs that it may have, for layers with candidates of their own.
        ties: Groups of free layers that get the same widths, disjoint.
    """

    floating: tuple[str, ...]
    pinned: Mapping[str, LayerBits]
    candidates: Mapping[str, tuple[LayerBits, ...]]
    ties: tuple[tuple[str, ...], ...]

    def with_lookups(self, layers: Sequence[LayerSpec], offer: Offer, bits: Sequence[int]) -> Choices:
        """Returns the same choices, with one width of activations for each of weights where a layer reads indices.

        Its inputs are not quantized, so pairs that differ in their activations alone would be one and the same.

        Args:
            layers: Of the network.
            offer: What layers can have without rules.
            bits: Candidate widths of weights.
        """
        if offer.weights_only:
            return self
        usual = tuple(pair for pair in offer.pairs if pair.w_bits in bits and pair.a_bits in offer.a_bits)
        own = {
            layer.name: tuple({pair.w_bits: pair for pair in self.candidates.get(layer.name, usual)}.values())
            for layer in layers
            if layer.is_lookup and usual and layer.name not in {*self.floating, *self.pinned}
        }
        return replace(self, candidates={**self.candidates, **own})


def choose(rules: Sequence[Rule], layers: Sequence[LayerSpec], offer: Offer) -> Choices:
    """Applies rules to the layers of a network.

    A pin wins over candidates; pins, candidates and ties win over the ends; of two rules of a kind the later one wins.
    Where the hardware needs an end and other layers at the same widths, all of them are held at 8 bits.

    Args:
        rules: In the order in which they were given.
        layers: All layers of the network, in the order of their first call.
        offer: What layers can have without rules.

    Raises:
        ConfigError: A rule matches nothing, asks for what the hardware does not run, or contradicts another one; or no
            layer is left to be searched.
    """
    names = [layer.name for layer in layers]
    floating = {name for rule in rules if rule.kind == "float" for name in rule.layers(names)}
    settings: dict[str, _Setting] = {}
    for kind in ("bits_of", "pin"):  # a pin replaces candidates
        for rule in (rule for rule in rules if rule.kind == kind):
            chosen = rule.layers(names)
            if odd := next((name for name in chosen if name in floating), None):
                raise ConfigError(f"{rule}: layer {odd!r} stays in floating point by --float; drop one of the rules")
            settings |= dict.fromkeys(chosen, _Setting(kind == "pin", _pairs(rule, chosen[0], offer)))
    by_hand = [group for rule in rules if rule.kind == "tie" for group in _groups(rule, layers, floating)]
    shared = [[name for name in group if name not in floating] for group in offer.shared]
    ties = _merged([*by_hand, *shared], names)
    for tie in ties:
        _check_alike(tie, settings, offer)
    held = {*offer.ends} - {*settings, *floating, *(name for group in by_hand for name in group)}
    beside = {name for tie in ties if held & {*tie} for name in tie if name not in settings}
    pinned = dict.fromkeys(held | beside, _END)
    pinned |= {name: setting.pairs[0] for name, setting in settings.items() if setting.pinned}
    if not {*names} - {*pinned, *floating}:
        raise ConfigError(
            "every layer is pinned or stays in floating point, so nothing is left to search; give fewer rules, or use "
            "haq quantize"
        )
    return Choices(
        tuple(name for name in names if name in floating),
        {name: pinned[name] for name in names if name in pinned},
        {name: setting.pairs for name, setting in settings.items() if not setting.pinned},
        tuple(tie for tie in ties if tie[0] not in pinned),
    )


@dataclass(frozen=True)
class _Setting:
    """What a rule gives a layer: one pair of widths, or several to choose from."""

    pinned: bool
    pairs: tuple[LayerBits, ...]

    def __str__(self) -> str:
        return f"{'pinned to' if self.pinned else 'chosen from'} {listed_pairs(self.pairs)}"


def _pairs(rule: Rule, layer: str, offer: Offer) -> tuple[LayerBits, ...]:
    """Returns the pairs of widths that a rule gives its layers, of which one is named in messages."""
    if offer.weights_only:
        if rule.a_bits is not None:
            raise ConfigError(f"{rule}: activations stay in floating point; give widths of weights alone, without a /")
        return tuple(LayerBits(width, None) for width in rule.w_bits)
    a_bits = rule.a_bits or (rule.w_bits if rule.kind == "pin" else offer.a_bits)
    found = tuple(pair for pair in offer.pairs if pair.w_bits in rule.w_bits and pair.a_bits in a_bits)
    lost = {*rule.w_bits} - {pair.w_bits for pair in found} | {*(rule.a_bits or ())} - {pair.a_bits for pair in found}
    if lost:
        raise ConfigError(
            f"{rule}: hardware {offer.hardware!r} does not run layer {layer!r} so; it runs {listed_pairs(offer.pairs)} "
            "bits (weights/activations)"
        )
    return found


def _groups(rule: Rule, layers: Sequence[LayerSpec], floating: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yields the groups of a tie, without those that stay in floating point."""
    kinds = {layer.name: layer.kind for layer in layers}
    for group in rule.groups(list(kinds)):
        first = group[0]
        for name in group:
            if kinds[name] != kinds[first]:
                raise ConfigError(
                    f"{rule}: layer {first!r} is {kinds[first]} and layer {name!r} is {kinds[name]}; tie layers of one "
                    "kind"
                )
            if (name in floating) != (first in floating):
                odd, other = (name, first) if name in floating else (first, name)
                raise ConfigError(f"{rule}: layer {odd!r} stays in floating point, layer {other!r} does not")
        if first not in floating:
            yield group


def _merged(groups: Iterable[Sequence[str]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Joins groups that have a layer in common, and leaves out those of a single layer."""
    group_of = {name: {name} for name in names}
    for group in groups:
        together = {*group}.union(*(group_of[name] for name in group))
        group_of |= dict.fromkeys(together, together)
    joined = dict.fromkeys(tuple(name for name in names if name in group_of[each]) for each in names)
    return [group for group in joined if len(group) > 1]


def _check_alike(tie: Sequence[str], settings: Mapping[str, _Setting], offer: Offer) -> None:
    first = settings.get(tie[0])
    for name in tie:
        if (other := settings.get(name)) != first:
            why = f"hardware {offer.hardware!r} needs the same widths for layers that read one tensor"
            what = why if any(name in group for group in offer.shared) else "they are tied"
            raise ConfigError(
                f"layer {tie[0]!r} is {first or 'without a rule'} and layer {name!r} is {other or 'without a rule'}, "
                f"but {what}; give both the same --pin or --bits-of"
            )
