"""The command that checks labels: audit."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from segkit.cli.options import Overwrite, RecipeFile, Set
from segkit.cli.output import emit
from segkit.cli.root import app, examples


class Learner(StrEnum):
    """What predicts the labels; see `segkit.auditing.folds.LEARNERS`."""

    FOREST = "forest"
    LDA = "lda"
    NETWORK = "network"


@app.command(
    epilog=examples(
        "segkit audit configs/deforestation.yaml -o audit",
    )
)
def audit(
    recipe: RecipeFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the results.")],
    folds: Annotated[int, typer.Option(metavar="K", help="Number of folds.")] = 5,
    learner: Annotated[
        Learner, typer.Option(help="What predicts: a quick learner of pixels and texture, or the recipe's network.")
    ] = Learner.FOREST,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Use the models of a cross-validation (train --folds).")
    ] = None,
    min_area: Annotated[
        str, typer.Option("--min-area", metavar="AREA", help="Smallest place that is listed: 0.1ha, 9px.")
    ] = "9px",
    max_shift: Annotated[
        int, typer.Option("--max-shift", metavar="PX", help="Largest offset of labels that is looked for, in pixels.")
    ] = 4,
    pictures: Annotated[int, typer.Option(metavar="N", help="Number of suspicious labels in the picture.")] = 12,
    set_: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Find labels that are probably wrong: classes, missing objects, offsets; a ranked list for QGIS and pictures."""
    from segkit.auditing.label_audit import audit as run_audit

    result = run_audit(
        recipe,
        output,
        folds=folds,
        learner=learner.value,
        run=run,
        min_area=min_area,
        max_shift=max_shift,
        pictures=pictures,
        overrides=set_ or (),
        overwrite=overwrite,
        show_progress=True,
    )
    print(result.render())
    print(f"\nlist {result.layer}")
    print(f"picture {result.picture}")
    print(f"summary {result.summary_file}")
    emit(result.summary())
