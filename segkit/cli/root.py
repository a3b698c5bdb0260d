"""The root command: commands in groups, renamed options, examples in the help."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from segkit.cli.output import CommandLine

# The commands in the order of the work, as the help lists them.
_GROUPS = {
    "Prepare": ("demo", "info", "init", "check", "encoders", "schema", "cache"),
    "Train": ("train", "finish", "compare", "audit"),
    "Map": ("predict", "vectorize", "clean", "reclassify", "change", "areas"),
    "Label": ("suggest", "labels"),
    "Evaluate": ("evaluate", "assess"),
    "Share": ("report", "export"),
}
# Options of segkit 0.2 that have another name now; the old one is accepted until 0.4.
RENAMED_OPTIONS = {
    "--names": "--class-names",
    "--boundary": "--boundary-width",
    "--objects": "--min-object-area",
    "--batch": "--batch-size",
    "--error": "--target-se",
    "--minimum": "--min-per-stratum",
    "--expect": "--expected-users-accuracy",
    "--finite": "--finite-population-correction",
}


class Stopped(BaseException):
    """Ctrl-C or a signal in a command; the message, if there is one, says what is kept and how to continue."""


class _Grouped(TyperGroup):
    """Lists commands in groups."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; of a KeyboardInterrupt typer would keep the exit code alone."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(*error.args) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        for title, names in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(1000)) for name in names])


class _InFull(TyperGroup):
    """Lists commands with all of their first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for all commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(1000)) for name, one in self.commands.items()])


def examples(*lines: str) -> str:
    """Return the end of a command's help: examples, each on a line of its own."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


app = CommandLine(
    name="segkit",
    cls=_Grouped,
    help="Land-cover maps from GeoTIFFs: train, predict whole scenes without seams, export clean polygons.",
    epilog=examples("segkit demo", "segkit train RECIPE --help"),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
assess_app = CommandLine(
    cls=_InFull,
    help="Estimate the areas and the accuracy of a map, with confidence intervals, from a random sample.",
    rich_markup_mode=None,
)
app.add_typer(assess_app, name="assess")


def _print_version(wanted: bool) -> None:
    if wanted:
        from segkit.runtime.version import VERSION

        print(f"segkit {VERSION}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Works after any command, too.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
