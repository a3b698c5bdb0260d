"""The command demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import DemoTask, Set
from segkit.cli.root import app


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where everything goes.")] = Path("demo"),
    task: Annotated[DemoTask, typer.Option(help="What to map.")] = DemoTask.DEFORESTATION,
    set_: Set = None,
) -> None:
    """Do the whole job on a sample landscape: train, predict, evaluate, polygons, picture."""
    from segkit.demo.run import demo as run

    result = run(folder, task=task.value, overrides=set_ or (), show_progress=True)
    print(result.render())
