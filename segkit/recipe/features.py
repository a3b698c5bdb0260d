"""Keys of a recipe for classical learners: their names and features, and which other keys apply to them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, model_validator

from segkit.recipe.base import Band, StrictModel

LearnerName = Literal["lda", "svm", "forest", "boosting"]
CLASSICAL: tuple[LearnerName, ...] = get_args(LearnerName)  # model.architecture; all others are networks
_FULL_NAMES = {
    "lda": "linear discriminant",
    "svm": "support vector machine",
    "forest": "random forest",
    "boosting": "gradient boosting",
}
_KEYS_OF_NETWORKS = ("start_from", "encoder", "encoder_weights", "encoder_bands", "pixel_branch")  # of model
# Of train; tile_size is used by the default block and gap of a split.
_KEYS_OF_CLASSICAL = (
    "tile_size", "class_weights", "fit_thresholds", "calibrate", "baselines", "device", "devices", "num_nodes", "seed",
)  # fmt: skip


def full_name(learner: str) -> str:
    """Return the name of a classical learner as in texts: "linear discriminant" for lda."""
    return _FULL_NAMES.get(learner, learner)


def _refuse_repeated(learners: tuple[LearnerName, ...]) -> tuple[LearnerName, ...]:
    for name in learners:
        if learners.count(name) > 1:
            raise ValueError(f"lists {name} twice; remove one of them")
    return learners


LearnerNames = Annotated[tuple[LearnerName, ...], AfterValidator(_refuse_repeated)]


class Features(StrictModel):
    """Features of a classical learner besides the bands."""

    texture: tuple[Annotated[int, Field(ge=3)], ...] = ()
    """Sides of square windows in pixels, odd: the mean and standard deviation of each band around each pixel."""
    indices: tuple[tuple[Band, ...], ...] = ()
    """Pairs of bands [a, b], by name or by number as in data.bands: (a - b) / (a + b)."""

    @model_validator(mode="after")
    def _check_features(self) -> Features:
        for side in self.texture:
            if side % 2 == 0:
                raise ValueError(f"texture has a side of {side} pixels; use an odd number, so that a pixel is central")
            if self.texture.count(side) > 1:
                raise ValueError(f"texture lists {side} twice; remove one of them")
        for pair in self.indices:
            named = " and ".join(map(str, pair))
            if len(pair) != 2:
                raise ValueError(f"indices has a list of {len(pair)} bands ({named}); give pairs")
            if pair[0] == pair[1]:
                raise ValueError(f"indices has a pair of the same band, {pair[0]}; give two bands")
            if self.indices.count(pair) > 1:
                raise ValueError(f"indices lists {named} twice; remove one of them")
        return self


def check_model_keys(architecture: str, given: Collection[str], features: Features | None) -> None:
    """Raise a ValueError if a key of `model` was given that is not for its architecture."""
    if architecture not in CLASSICAL and features is not None:
        raise ValueError(
            f"features are for {', '.join(CLASSICAL)}; {architecture} is a network, which learns its own: remove them"
        )
    for key in _KEYS_OF_NETWORKS if architecture in CLASSICAL else ():
        if key in given:
            raise ValueError(
                f"{key} is for networks, and {architecture} is none; remove it, or give the whole section: "
                f"model={{architecture: {architecture}}}"
            )


def keys_of_others(architecture: str) -> tuple[str, ...]:
    """Return the keys of `model` that are not for an architecture, and that a stored recipe does not have."""
    return _KEYS_OF_NETWORKS if architecture in CLASSICAL else ("features",)


def ignored_train_keys(train: BaseModel) -> tuple[str, ...]:
    """Return the keys of `train` that were given, but have no effect on classical learners.

    Of a recipe with all keys, as a training stores it, those count as given that differ from their defaults.
    """
    fields = type(train).model_fields
    given = set(train.model_fields_set)
    if given == set(fields):
        given = {key for key in fields if getattr(train, key) != fields[key].get_default(call_default_factory=True)}
    return tuple(key for key in fields if key in given and key not in _KEYS_OF_CLASSICAL)
