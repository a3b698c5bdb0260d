"""The command demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import DemoTask, Set
from segkit.cli.output import emit
from segkit.cli.root import app, examples


@app.command(epilog=examples("segkit demo demo --task landcover"))
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Output folder.")] = Path("demo"),
    task: Annotated[DemoTask, typer.Option(help="Task of the sample.")] = DemoTask.DEFORESTATION,
    set_: Set = None,
) -> None:
    """Run everything on a sample landscape: train, predict, evaluate, polygons, report."""
    from segkit.demo.run import demo as run

    result = run(folder, task=task.value, overrides=set_ or (), show_progress=True)
    print(result.render())
    emit(result)
