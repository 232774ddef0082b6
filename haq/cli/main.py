"""The command line. Commands import heavy modules when they run, so that `--help` answers at once."""

from __future__ import annotations

import errno
import logging
import os
import sys

import click

from haq import __version__
from haq.cli.commands.compare_agents import compare_agents
from haq.cli.commands.completion import add_completions, completion
from haq.cli.commands.doctor import doctor
from haq.cli.commands.hardware import hardware, table
from haq.cli.commands.measure_and_bench import bench, measure
from haq.cli.commands.pick_and_finetune import finetune, pick
from haq.cli.commands.profile import profile
from haq.cli.commands.quantize import compare, quantize, schemes
from haq.cli.commands.report_and_export import export, report
from haq.cli.commands.search import search
from haq.cli.commands.sensitivity import sensitivity
from haq.cli.encodings import show_what_can_be_shown
from haq.cli.options import examples
from haq.errors import HaqError, did_you_mean, printable

__all__ = ["cli", "main"]

_LONGEST = 1000  # characters of a message


def main() -> None:
    """Runs the command line; a user's mistake gives one line on standard error and exit code 2."""
    show_what_can_be_shown()
    if os.path.expanduser("~") == "~":  # an unnamed user in a container: libraries would make a folder `~` here
        os.environ["HOME"] = "/"
    if logging.lastResort is not None:  # prints warnings as long as logging is not set up
        logging.lastResort.setFormatter(_Escaped())
    try:
        status = cli.main(prog_name="haq", standalone_mode=False)
    except (HaqError, click.ClickException) as error:
        status = _refuse(_message(error) if isinstance(error, click.ClickException) else str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        status = 130
    except BrokenPipeError:  # the reader has closed the pipe, as in `haq export RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
        status = 0
    except OSError as error:  # from a path that the user gave, or a full disk
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        what = "the output" if error.filename is None else repr(str(error.filename))
        status = _refuse(f"cannot use {what}: {error.strerror}; give another path, or fix that one")
    sys.exit(status if isinstance(status, int) else 0)


def _message(error: click.ClickException) -> str:
    """Returns click's message with a fix: what may have been meant, or where the options are listed."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if context is None or "id you mean" in message:
        return message
    return f"{message.rstrip('.')}; see `{context.command_path} --help`"


class _Group(click.Group):
    """Suggests the command that may have been meant; older versions of click suggest only options."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(f"no command {args[0]!r}{did_you_mean(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


class _Escaped(logging.Formatter):
    """Escapes log messages, because they may quote names from strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _refuse(message: str) -> int:
    """Prints one line, with text from files and options escaped so that it cannot control the terminal."""
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"  # the fix is at the end
    click.echo(f"error: {line}", sys.stderr, err=True)  # click would write UTF-8 to a stream in ASCII
    return 2


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "haq search --constraint latency=10ms             search on the built-in network",
        "haq report runs/digits-resnet-edge               show the result again",
        "haq export runs/digits-resnet-edge -o bits.json  write the widths of every layer",
        "haq pick runs/digits-resnet-edge --constraint latency=8ms   take another point of the front",
        "haq finetune runs/digits-resnet-edge --epochs 9  continue training the result",
        "haq bench runs/digits-resnet-edge                run it here: predicted against measured",
        "haq quantize --policy bits.json --qat-steps 300  apply a policy without a search",
        "haq compare --schemes linear,lsq --bits 2,3,4    schemes side by side",
        "haq sensitivity                                  which layers need their bits",
        "haq compare-agents --constraint latency=50%      search agents side by side",
        "haq hardware edge                                an accelerator's parameters and sources",
        "haq profile --hardware edge                      what each layer costs, and what binds it",
        "haq measure --model resnet20 --data npz:cifar10  a cost table of this machine",
    ),
)
@click.version_option(__version__, prog_name="haq")
def cli() -> None:
    """Find the bit-widths of every layer's weights and activations that keep the most accuracy within a budget."""


for _command in (
    search,
    report,
    export,
    pick,
    finetune,
    schemes,
    quantize,
    compare,
    hardware,
    profile,
    table,
    measure,
    bench,
    sensitivity,
    compare_agents,
    doctor,
    completion,
):
    cli.add_command(_command)

add_completions(cli)
