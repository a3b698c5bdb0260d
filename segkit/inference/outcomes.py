"""What the scenes of a prediction came to: their summaries, or one error; and warnings about their maps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from segkit.errors import ScenesError, suggest
from segkit.inference.executor import error_message
from segkit.inference.scene_files import PredictionFiles
from segkit.inference.summary import Summary
from segkit.io.paths import PathLike
from segkit.io.unreadable import UnreadableGround
from segkit.runtime.tables import list_some


def summaries_or_raise(
    jobs: Sequence[PredictionFiles], outcomes: Sequence[Summary | Exception], aoi: PathLike | None
) -> list[Summary]:
    """Return the summaries if all scenes succeeded; warn about maps without data, and about unreadable blocks."""
    summaries = [outcome for outcome in outcomes if isinstance(outcome, Summary)]
    names = [str(job.files[0]) for job in jobs]
    empty = [
        name
        for name, outcome in zip(names, outcomes, strict=True)
        if isinstance(outcome, Summary) and not outcome.valid
    ]
    if empty:
        _warn_empty(empty, aoi)
    _warn_unreadable([summary.unreadable for summary in summaries if summary.unreadable is not None])
    failures = {name: outcome for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Exception)}
    if failures and len(jobs) == 1:
        raise next(iter(failures.values()))
    if failures:
        messages = {name: error_message(error) for name, error in failures.items()}
        details = (text if text.startswith(name) else f"{name}: {text}" for name, text in messages.items())
        others = "none is finished" if len(failures) == len(jobs) else "the others are finished"
        raise ScenesError(
            "\n  ".join([f"{len(failures)} of {len(jobs)} scenes failed, {others}:", *details]), summaries
        )
    return summaries


def _warn_empty(scenes: Sequence[str], aoi: PathLike | None) -> None:
    where = "" if aoi is None else f" inside {aoi}"
    warnings.warn(
        f"{len(scenes)} scene{'s' * (len(scenes) > 1)} without valid pixels{where}, so the map is all no data: "
        f"{list_some(scenes)}; check the no-data value and the mask of the files",
        stacklevel=6,
    )


def _warn_unreadable(found: Sequence[UnreadableGround]) -> None:
    if found:
        where = "in the map" if len(found) == 1 else f"in {len(found)} maps"
        warnings.warn(
            f"{UnreadableGround.total(found).describe()} no data {where}"
            + suggest("copy the files again, and map them with --overwrite, to fill these"),
            stacklevel=6,
        )
