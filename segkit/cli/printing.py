"""Results as the commands print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from segkit.runtime.tables import format_table

if TYPE_CHECKING:
    from segkit.data.cache import CacheEntry
    from segkit.inference.forecasting import Forecast
    from segkit.inference.predict import Summary
    from segkit.inference.settings import ResolvedSettings
    from segkit.training.comparison import Comparison


def gigabytes(entries: Sequence[CacheEntry]) -> str:
    """Return the size of entries of the cache in GB."""
    return f"{sum(entry.size for entry in entries) / 1e9:.3g} GB"


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print a row of scores for each class, and the scores of all."""
    from segkit.models.run_folder import baseline_scores
    from segkit.recipe.features import full_name

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    known = ("iou", "f1", "precision", "recall", "boundary_iou", "boundary_f1", "object_f1", "support")
    columns = [key for key in known if all(key in scores for scores in metrics["per_class"].values())]
    rows = [(name, *(number(scores[key]) for key in columns)) for name, scores in metrics["per_class"].items()]
    print_table(("class", *columns), rows)
    overall = ("overall_accuracy", "mean_iou", "macro_f1", "ece", "brier", "pixels")
    print("\n" + "   ".join(f"{key} {number(metrics[key])}" for key in overall if key in metrics))
    for learner, scores in baseline_scores(metrics).items():
        print(f"{full_name(learner)} of single pixels: " + "   ".join(f"{k} {number(v)}" for k, v in scores.items()))
    intervals = metrics.get("intervals")
    if intervals:
        spans = (
            f"{key} {low:.4f} to {high:.4f}" for key in overall[:3] if intervals[key] for low, high in [intervals[key]]
        )
        print(f"95 % confidence intervals over {intervals['units']} {intervals['unit']}s: " + "   ".join(spans))


def print_worst_scenes(metrics: dict[str, Any], count: int) -> None:
    """Print the scenes with the lowest accuracy, if there are several scenes: one in a line, more in a table."""
    from segkit.evaluation.scene_scores import describe_scene, find_worst_scenes

    scenes = metrics.get("scenes", ())
    worst = find_worst_scenes(scenes, count)
    if not worst:
        return
    if len(worst) == 1:
        print(f"worst of {len(scenes)} scenes: {describe_scene(worst[0])}")
        return
    has_distance = any(one.get("distance") is not None for one in worst)
    header = (f"worst of {len(scenes)} scenes", "pixels", "accuracy", "mean IoU", *["distance"] * has_distance)
    rows = []
    for one in worst:
        scores = ("-" if one[key] is None else f"{one[key]:.4f}" for key in ("overall_accuracy", "mean_iou"))
        far = "-" if one.get("distance") is None else f"{one['distance']:.1f}"
        rows.append((one["scene"], f"{one['pixels']:,}", *scores, *[far] * has_distance))
    print()
    print_table(header, rows)
    if has_distance:
        print("distance: difference in appearance from the nearest training scene; 1 is usual among training scenes")


def print_comparison(result: Comparison) -> None:
    """Print a row of means and spreads for each variant, and the matrix of agreement."""
    from segkit.training.comparison import MEASURES

    def number(value: float | None, key: str) -> str:
        return "-" if value is None else f"{value:,.1f}" if "seconds" in key else f"{value:.4f}"

    header = ["variant", "n"]
    for title in MEASURES.values():
        header += [title, "+-"]
    rows = []
    for row in result.rows:
        cells = [row.variant, str(row.trials)]
        for key, measure in row.measures.items():
            cells += [number(measure.mean, key), number(measure.std, key)]
        rows.append(tuple(cells))
    print_table(tuple(header), rows)
    print("\npixels predicted alike (diagonal: with another seed)")
    shares = [["-" if share is None else f"{share:.2%}" for share in line] for line in result.agreement]
    names = [row.variant for row in result.rows]
    print_table(("", *names), [(name, *line) for name, line in zip(names, shares, strict=True)])
    print(f"\ntable {result.folder / 'compare.csv'}\npicture {result.picture}")


def print_summary(summary: Summary) -> None:
    """Print areas, settings and speed of a finished map."""
    from segkit.runtime.progress import format_count

    done = not summary.seconds
    print(f"{summary.path}" + (" is finished already (same request); nothing to do" if done else ""))
    for name, path in summary.outputs.items():
        print(f"{name} {path}")
    print_areas("pixels", summary.pixels, summary.hectares)
    if summary.share_outside is not None:
        print(describe_share_outside(summary))
    if summary.unreadable is not None:
        print(f"{summary.unreadable.describe()} no data")
    choice = summary.choice
    print(f"tile {choice.tile}, overlap {choice.overlap}, {describe_computation(choice)}")
    if not done:
        memory = "" if summary.peak_memory is None else f", peak memory {summary.peak_memory / 2**20:,.0f} MiB"
        resumed = f", {summary.resumed} of {summary.bands} row bands resumed" if summary.resumed else ""
        print(f"{summary.seconds:.1f} s, {format_count(summary.mpx_per_second)} Mpx/s{memory}{resumed}\n")


def print_forecasts(forecasts: Sequence[Forecast]) -> None:
    """Print windows, time and memory of each scene, and the time of all."""
    from segkit.runtime.progress import format_count

    for one in forecasts:
        if one.finished or one.choice is None:
            print(f"{one.path} is finished already (same request); nothing to do")
            continue
        choice = one.choice
        print(f"{one.path}: {format_count(one.pixels / 1e6)} Mpx, {one.windows:,} windows in {one.bands:,} row bands")
        print(f"  tile {choice.tile}, overlap {choice.overlap}, batch {choice.batch}, {describe_computation(choice)}")
        print(f"  about {_duration(one.seconds)}, peak memory about {one.memory / 2**20:,.0f} MiB")
    if len(forecasts) > 1:
        print(f"all: about {_duration(sum(one.seconds for one in forecasts))}")
    print("nothing was written (--dry-run)")


def _duration(seconds: float) -> str:
    """Return a time as people say it."""
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def describe_share_outside(summary: Summary) -> str:
    """Say how much of the map is outside the area of applicability, and whether all pixels were counted."""
    from segkit.plots.text import format_percent

    where = (
        "a sample of the map's pixels (--applicability counts all)" if summary.share_is_sampled else "the map's pixels"
    )
    share = format_percent(summary.share_outside)
    return f"unlike the training data (outside the area of applicability): {share} of {where}"


def describe_computation(choice: ResolvedSettings) -> str:
    """Name precision and backend, how much faster the backend is, and how many pixels differ, if that was measured."""
    if choice.backend == "torch" and choice.speedup is None:
        return _describe_precision(choice)
    faster = "" if choice.speedup is None else f" ({choice.speedup:.1f} times as fast as the default)"
    return f"{choice.backend}{' (the fastest here)' if choice.speedup == 1 else faster}, {_describe_precision(choice)}"


def _describe_precision(choice: ResolvedSettings) -> str:
    from segkit.runtime.progress import format_count

    if choice.agreement is None:
        return choice.precision
    share = f"{format_count(100 * (1 - choice.agreement))} % of the pixels"
    return f"bf16 ({share} differ from fp32)" if choice.precision == "bf16" else f"fp32 (bf16 would change {share})"


def print_areas(counted: str, counts: dict[str, int], hectares: dict[str, float] | None) -> None:
    """Print pixels and hectares of each class."""
    rows = [
        (name, f"{count:,}", "" if hectares is None else f"{hectares[name]:,.2f}") for name, count in counts.items()
    ]
    print_table(("class", counted, "hectares"), rows)


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns: the first one to the left, numbers to the right."""
    print(format_table(header, rows))
