"""Commands that quantize without a search: `haq schemes`, `haq quantize`, `haq compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haq.cli.options import DEFAULTS, at_least, examples, network_options
from haq.cli.output import Result, output_options
from haq.cli.tables import columns, facts, left_over
from haq.cli.terminal import TerminalObserver, console
from haq.config import parse_bits, parse_passes
from haq.errors import ConfigError
from haq.io.output_paths import check_file
from haq.io.safe_yaml import parse_yaml
from haq.metrics import format_cost
from haq.policy import BitPolicy

if TYPE_CHECKING:
    from torch import nn

    from haq.data import ImageData
    from haq.quant.schemes import Scheme

__all__ = ["compare", "quantize", "schemes"]

_VAL_IMAGES = DEFAULTS.val_images
_USUAL_INPUTS = 8  # bits of activations in common runtimes


@click.command(epilog=examples("haq schemes", "haq schemes lsq"))
@click.argument("name", required=False)
@output_options
def schemes(name: str | None) -> Result:
    """List the quantization schemes, or show paper, equation and options of one.

    With --quiet, only the names are listed.
    """
    from haq.quant.schemes import get_scheme, list_schemes

    if name is None:
        found = [get_scheme(known) for known in list_schemes()]
        table = columns("scheme", "quantizes", "bits", "trains", "kernels", "paper")
        for scheme in found:
            kernels = ", ".join(scheme.kernels)
            table.add_row(
                scheme.name, scheme.covers, _ranges(scheme.widths), scheme.trainable, kernels, scheme.arxiv or "-"
            )
        console.print(table)
        console.print("papers are arXiv identifiers; haq schemes NAME shows more", style="dim")
        return Result(lambda: {"schemes": list(map(_described, found))}, tuple(scheme.name for scheme in found))
    scheme = get_scheme(name)
    labelled = {
        "title": scheme.title,
        "paper": f"https://arxiv.org/abs/{scheme.arxiv}" if scheme.arxiv else "-",
        "equation": scheme.equation,
        "quantizes": scheme.covers,
        "bits": _ranges(scheme.widths),
        "trains": scheme.trainable,
        "kernels": ", ".join(scheme.kernels),
        "options": ", ".join(f"{key}={value}" for key, value in scheme.defaults().items()),
    }
    shown = facts(labelled)
    console.print(shown)
    return Result(lambda: _described(scheme), (shown,))


def _described(scheme: Scheme) -> dict[str, Any]:
    return {
        "name": scheme.name,
        "title": scheme.title,
        "arxiv": scheme.arxiv,
        "equation": scheme.equation,
        "covers": scheme.covers,
        "w_bits": scheme.widths,
        "a_bits": None if scheme.inputs is None else scheme.input_widths,
        "trainable": scheme.trainable,
        "kernels": scheme.kernels,
        "options": scheme.defaults(),
    }


@click.command(
    epilog=examples(
        "haq quantize --bits 4 --scheme linear",
        "haq quantize --policy bits.json --qat-steps 300",
        "haq quantize --model resnet20 --weights resnet20.pt --data npz:cifar10 --bits 3 --ptq auto",
        "haq quantize --bits 8 --integer",
    )
)
@network_options
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Widths of every layer: a file from haq export, or a run's best.json.",
)
@click.option(
    "--bits",
    type=int,
    metavar="N",
    help="Instead of --policy: bits of the weights of all layers; the first and the last have 8.",
)
@click.option(
    "--a-bits",
    type=int,
    metavar="N",
    help="With --bits: bits of the activations.  [default: 8, or what the scheme has]",
)
@click.option("--weights-only", is_flag=True, help="With --bits: leave activations in floating point.")
@click.option("--scheme", metavar="NAME", help="See haq schemes.  [default: the policy's, or linear]")
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the scheme, such as granularity=tensor."
)
@click.option(
    "--ptq",
    default="sequential",
    show_default=True,
    metavar="PASSES",
    help="Post-training passes, separated by commas: cle, sequential, adaround, bias, bias-analytic; auto for "
    "sequential and adaround; or none.",
)
@click.option("--qat-steps", default=0, show_default=True, metavar="N", help="Fine-tuning steps.")
@click.option("--batch", default=64, show_default=True, help="Images per fine-tuning step.")
@click.option("--integer", is_flag=True, help="Also convert to integer-only arithmetic, and score the result.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order of the training images.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the network here.")
@output_options
def quantize(
    model: str,
    weights: str | None,
    data: str,
    policy: Path | None,
    bits: int | None,
    a_bits: int | None,
    weights_only: bool,
    scheme: str | None,
    options: tuple[str, ...],
    ptq: str,
    qat_steps: int,
    batch: int,
    integer: bool,
    seed: int,
    output: Path | None,
) -> Result:
    """Apply a given policy without a search, and print accuracy and size."""
    if (policy is None) == (bits is None):
        raise ConfigError("give either --policy FILE or --bits N")
    if a_bits is not None and (bits is None or weights_only):
        raise ConfigError(f"--a-bits {a_bits}: use it with --bits, and not with --weights-only")
    passes = parse_passes(ptq)
    at_least({"--qat-steps": (qat_steps, 0), "--batch": (batch, 1), "--seed": (seed, 0)})
    if output is not None:
        check_file("-o", output)
    given = BitPolicy.load(policy) if policy else None
    with TerminalObserver() as observer:
        from haq.policy import check_width
        from haq.quant.pipeline import Recipe, apply_policy, integer_top1, stored_bytes, uniform_policy
        from haq.quant.reach import reached
        from haq.quant.schemes import get_scheme
        from haq.quant.uncovered import rest_of

        chosen = get_scheme(scheme or (given.scheme if given else "linear"), **_parsed(options))
        recipe = Recipe(chosen, passes, qat_steps, batch, seed)
        check_width(bits, "--bits")
        check_width(a_bits, "--a-bits")
        network, images = _open(model, weights, data, seed, observer)
        sample = images.train.batch([0])[0]
        network, layers = reached(network, sample)
        if given is None:
            assert bits is not None
            given = uniform_policy(layers, bits, None if weights_only else _activations(chosen, bits, a_bits))
        given = given.with_scheme(chosen.name)
        from haq.quant.evaluation import evaluate

        size = stored_bytes(network, layers, rest_of(network, sample, layers))
        rows = [("float", evaluate(network, images.test, "float").top1, size)]
        result = apply_policy(network, given, images, recipe, observer)
        rows += [(stage, top1, result.size_bytes) for stage, top1 in result.top1.items()]
        if integer:
            rows.append(("integer-only", integer_top1(result.model, images), result.size_bytes))
        if output is not None:
            from haq.quant.preparation import save_quantized
            from haq.quant.ptq import folds

            folded = folds(recipe.passes)
            save_quantized(output, result.model, given, sample, folded, chosen.options)
    table = columns("network", "test top-1", "size", right=("test top-1", "size"))
    for stage, top1, size in rows:
        table.add_row(stage, f"{top1:.4f}", format_cost("size_bytes", size))
    console.print(table)
    if result.rest:
        console.print(left_over(result.rest))

    def document() -> dict[str, Any]:
        networks = [{"network": stage, "test_top1": top1, "size_bytes": size} for stage, top1, size in rows]
        left = result.rest.described()
        return {"scheme": chosen.name, "policy": given.widths(), "networks": networks, "rest": left, "file": output}

    return Result(document, (table,))


@click.command(
    epilog=examples(
        "haq compare --schemes linear,lsq,kmeans --bits 2,3,4",
        "haq compare --model resnet20 --weights resnet20.pt --data npz:cifar10 --schemes all --bits 4 --qat-steps 300",
    )
)
@network_options
@click.option(
    "--schemes", "names", default="all", show_default=True, metavar="NAMES", help="As in haq schemes, or all."
)
@click.option("--bits", default="2,3,4,8", show_default=True, metavar="WIDTHS", help="Widths to compare at.")
@click.option("--qat-steps", default=0, show_default=True, metavar="N", help="Fine-tuning steps of each network.")
@click.option("--batch", default=64, show_default=True, help="Images per fine-tuning step.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order of the training images.")
@output_options
def compare(
    model: str, weights: str | None, data: str, names: str, bits: str, qat_steps: int, batch: int, seed: int
) -> Result:
    """Print test top-1 and size of one network with several schemes and widths.

    The first and the last layer have 8 bits. Schemes for weights alone leave activations at 8 bits; a scheme with only
    one width is shown at that width.
    """
    at_least({"--qat-steps": (qat_steps, 0), "--batch": (batch, 1), "--seed": (seed, 0)})
    with TerminalObserver() as observer:
        from haq.quant.comparison import compare_schemes
        from haq.quant.schemes import get_scheme, list_schemes

        chosen = [get_scheme(name.strip()) for name in (list_schemes() if names == "all" else names.split(","))]
        widths = parse_bits(bits)
        network, images = _open(model, weights, data, seed, observer)
        found = compare_schemes(
            network, images, chosen, widths, qat_steps, batch, seed,
            lambda done, total, name: observer.progress("compare", done, total, name),
        )  # fmt: skip
    stages = "calibrated", *(["fine-tuned"] if qat_steps else [])
    table = columns("scheme", "weights/activations", *stages, "size", right=(*stages, "size"))
    for row in found:
        scores = (f"{row.top1[stage]:.4f}" for stage in stages)
        size = format_cost("size_bytes", row.size_bytes)
        table.add_row(row.scheme, f"{row.w_bits}/{row.a_bits or 'float'}", *scores, size)
    console.print(table)

    def document() -> dict[str, Any]:
        keys = "scheme", "w_bits", "a_bits"
        networks = [
            {**{key: getattr(row, key) for key in keys}, "test_top1": row.top1,
             "size_bytes": row.size_bytes}
            for row in found
        ]  # fmt: skip
        return {"networks": networks}

    return Result(document, (table,))


def _activations(scheme: Scheme, w_bits: int, a_bits: int | None) -> int | None:
    """Returns the width of activations beside weights of `w_bits`: the given one, or 8 if the scheme has it."""
    if scheme.inputs is None:
        return None
    if a_bits is not None:
        return a_bits
    return _USUAL_INPUTS if _USUAL_INPUTS in scheme.input_widths else scheme.activation_width(w_bits)


def _open(
    model: str, weights: str | None, data: str, seed: int, observer: TerminalObserver
) -> tuple[nn.Module, ImageData]:
    from haq.runs.project import open_network

    return open_network(model, weights, data, _VAL_IMAGES, seed, observer)


def _parsed(options: tuple[str, ...]) -> dict[str, Any]:
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {option}: write KEY=VALUE, such as granularity=tensor")
        try:
            parsed[key.strip()] = parse_yaml(value)
        except ValueError as error:
            raise ConfigError(f"--option {option}: {error}") from None
    return parsed


def _ranges(widths: tuple[int, ...]) -> str:
    if len(widths) == 1:
        return str(widths[0])
    plain = [width for width in widths if width <= 8]
    return f"{plain[0]}-{plain[-1]}" + (", 16" if 16 in widths else "")
