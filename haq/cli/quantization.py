"""Commands that quantize without a search: `haq schemes`, `haq quantize`, `haq compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from rich import box
from rich.markup import escape
from rich.table import Table

from haq.cli.options import DEFAULTS, examples, network_options
from haq.cli.terminal import TerminalObserver, console
from haq.config import parse_bits
from haq.constraints import format_cost
from haq.errors import ConfigError
from haq.policy import BitPolicy

if TYPE_CHECKING:
    from torch import nn

    from haq.data import ImageData

__all__ = ["compare", "quantize", "schemes"]

_VAL_IMAGES = DEFAULTS.val_images


@click.command(epilog=examples("haq schemes", "haq schemes lsq"))
@click.argument("name", required=False)
def schemes(name: str | None) -> None:
    """List the quantization schemes, or say more of one: paper, equation, options."""
    from haq.quant.schemes import get_scheme, list_schemes

    if name is None:
        table = _table("scheme", "quantizes", "bits", "trains", "kernels", "paper")
        for scheme in map(get_scheme, list_schemes()):
            kernels = ", ".join(scheme.kernels)
            table.add_row(
                scheme.name, scheme.covers, _ranges(scheme.widths), scheme.trainable, kernels, scheme.arxiv or "-"
            )
        console.print(table)
        console.print("papers are arXiv identifiers; haq schemes NAME says more", style="dim")
        return
    scheme = get_scheme(name)
    facts = {
        "title": scheme.title,
        "paper": f"https://arxiv.org/abs/{scheme.arxiv}" if scheme.arxiv else "-",
        "what is built": scheme.equation,
        "quantizes": scheme.covers,
        "bits": _ranges(scheme.widths),
        "trains": scheme.trainable,
        "kernels": ", ".join(scheme.kernels),
        "options": ", ".join(f"{key}={value}" for key, value in scheme.defaults().items()),
    }
    grid = Table.grid(padding=(0, 2))
    for label, value in facts.items():
        grid.add_row(label, escape(value))
    console.print(grid)


@click.command(
    epilog=examples(
        "haq quantize --bits 4 --scheme linear",
        "haq quantize --policy bits.json --qat-steps 300",
        "haq quantize --model resnet20 --weights resnet20.pt --data npz:cifar10 --bits 4 --ptq cle,bias,adaround",
        "haq quantize --bits 8 --integer",
    )
)
@network_options
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Widths of every layer: what haq export writes, or a run's best.json.",
)
@click.option("--bits", type=int, metavar="N", help="Instead of --policy: so many bits everywhere, 8 at both ends.")
@click.option("--weights-only", is_flag=True, help="With --bits: leave activations in floating point.")
@click.option("--scheme", metavar="NAME", help="See haq schemes.  [default: the policy's, or linear]")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the scheme, as granularity=tensor.")
@click.option("--ptq", default="", metavar="PASSES", help="Post-training passes: cle, bias, bias-analytic, adaround.")
@click.option("--qat-steps", default=0, show_default=True, metavar="N", help="Fine-tuning steps.")
@click.option("--batch", default=64, show_default=True, help="Images a fine-tuning step.")
@click.option("--integer", is_flag=True, help="Also convert to integer-only arithmetic, and score that.")
@click.option("--seed", default=0, show_default=True, help="Order of the training images.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the network here.")
def quantize(
    model: str,
    weights: str | None,
    data: str,
    policy: Path | None,
    bits: int | None,
    weights_only: bool,
    scheme: str | None,
    options: tuple[str, ...],
    ptq: str,
    qat_steps: int,
    batch: int,
    integer: bool,
    seed: int,
    output: Path | None,
) -> None:
    """Apply a given policy without a search, and print accuracy and size."""
    if (policy is None) == (bits is None):
        raise ConfigError("give either --policy FILE or --bits N")
    _at_least({"--qat-steps": (qat_steps, 0), "--batch": (batch, 1), "--seed": (seed, 0)})
    given = BitPolicy.load(policy) if policy else None
    with TerminalObserver() as observer:
        from haq.policy import check_width
        from haq.quant.pipeline import Recipe, apply_policy, stored_bytes, uniform_policy
        from haq.quant.ptq import check_passes
        from haq.quant.schemes import get_scheme

        chosen = get_scheme(scheme or (given.scheme if given else "linear"), **_parsed(options))
        recipe = Recipe(
            chosen, check_passes(name.strip() for name in ptq.split(",") if name.strip()), qat_steps, batch, seed
        )
        check_width(bits, "--bits")
        network, images = _open(model, weights, data, seed, observer)
        if given is None:
            assert bits is not None
            given = uniform_policy(network, bits, None if weights_only or chosen.inputs is None else bits)
        given = given.with_scheme(chosen.name)
        from haq.quant.evaluation import evaluate

        rows = [("float", evaluate(network, images.test, "float").top1, stored_bytes(network))]
        result = apply_policy(network, given, images, recipe, lambda t, d, n: observer.progress(t, d, n))
        rows += [(stage, top1, result.size_bytes) for stage, top1 in result.top1.items()]
        if integer:
            rows.append(("integer-only", _integer_top1(result.model, images), result.size_bytes))
        if output is not None:
            from haq.quant.preparation import save_quantized

            save_quantized(output, result.model, given, images.train.batch([0])[0], bool(recipe.passes), chosen.options)
    table = _table("network", "test top-1", "size")
    for stage, top1, size in rows:
        table.add_row(stage, f"{top1:.4f}", format_cost("size_bytes", size))
    console.print(table)


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
@click.option("--batch", default=64, show_default=True, help="Images a fine-tuning step.")
@click.option("--seed", default=0, show_default=True, help="Order of the training images.")
def compare(
    model: str, weights: str | None, data: str, names: str, bits: str, qat_steps: int, batch: int, seed: int
) -> None:
    """Print test top-1 and size of one network under several schemes and widths, the ends at 8 bits.

    Schemes for weights alone leave activations at 8 bits; a scheme with one width is shown at that one.
    """
    _at_least({"--qat-steps": (qat_steps, 0), "--batch": (batch, 1), "--seed": (seed, 0)})
    with TerminalObserver() as observer:
        from haq.quant.evaluation import teacher_of
        from haq.quant.pipeline import Recipe, apply_policy, uniform_policy
        from haq.quant.schemes import get_scheme, list_schemes

        chosen = [get_scheme(name.strip()) for name in (list_schemes() if names == "all" else names.split(","))]
        cases = [
            (scheme, w_bits, scheme.activation_width(w_bits))
            for scheme in chosen
            for w_bits in ([width for width in parse_bits(bits) if width in scheme.widths] or scheme.widths[:1])
        ]
        network, images = _open(model, weights, data, seed, observer)
        teacher = teacher_of(network, images.train) if qat_steps else None
        table = _table("scheme", "weights/activations", "calibrated", *(["fine-tuned"] if qat_steps else []), "size")
        for done, (scheme, w_bits, a_bits) in enumerate(cases):
            observer.progress("compare", done, len(cases), scheme.name)
            policy = uniform_policy(network, w_bits, a_bits).with_scheme(scheme.name)
            recipe = Recipe(scheme, (), qat_steps, batch, seed)
            result = apply_policy(network, policy, images, recipe, teacher=teacher)
            scores = [f"{top1:.4f}" for top1 in result.top1.values()]
            widths = f"{w_bits}/{a_bits or 'float'}"
            table.add_row(scheme.name, widths, *scores, format_cost("size_bytes", result.size_bytes))
        observer.progress("compare", len(cases), len(cases))
    console.print(table)


def _open(
    model: str, weights: str | None, data: str, seed: int, observer: TerminalObserver
) -> tuple[nn.Module, ImageData]:
    from haq.data import get_data
    from haq.models import open_model

    images = get_data(data, _VAL_IMAGES, seed, model)
    return open_model(model, weights, images, lambda d, t: observer.progress("train float", d, t)), images


def _integer_top1(network: nn.Module, images: ImageData) -> float:
    from haq.quant.evaluation import evaluate
    from haq.quant.integer import convert

    batches = [x for x, _ in images.train.subset(range(min(256, len(images.train)))).batches(64)]
    return evaluate(convert(network, batches), images.test, "ptq").top1


def _parsed(options: tuple[str, ...]) -> dict[str, Any]:
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {option}: write KEY=VALUE, such as granularity=tensor")
        parsed[key.strip()] = yaml.safe_load(value)
    return parsed


def _at_least(values: Mapping[str, tuple[int, int]]) -> None:
    for option, (value, least) in values.items():
        if value < least:
            raise ConfigError(f"{option} {value}: must be at least {least}")


def _ranges(widths: tuple[int, ...]) -> str:
    if len(widths) == 1:
        return str(widths[0])
    plain = [width for width in widths if width <= 8]
    return f"{plain[0]}-{plain[-1]}" + (", 16" if 16 in widths else "")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
