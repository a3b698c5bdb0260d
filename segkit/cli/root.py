"""The root command: its groups of commands and its options."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# The commands in the order of the work, as the help lists them.
_GROUPS = {
    "Prepare": ("demo", "check", "schema", "cache"),
    "Train": ("train", "compare"),
    "Map": ("predict", "vectorize", "change"),
    "Judge": ("evaluate", "assess"),
    "Share": ("report",),
}


class _Grouped(TyperGroup):
    """Lists commands in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for title, names in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


app = typer.Typer(
    name="segkit",
    cls=_Grouped,
    help="Land-cover maps from GeoTIFFs: train, predict whole scenes without seams, export clean polygons.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
assess_app = typer.Typer(
    help="Areas and accuracy of a map, with error bars, from a random sample that somebody looks at.",
    rich_markup_mode=None,
)
app.add_typer(assess_app, name="assess")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"segkit {version('segkit')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
