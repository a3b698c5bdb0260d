"""Check the model of a recipe before a training: options, features, and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Sequence

from segkit.errors import RecipeError
from segkit.models.classical.estimators import check_options
from segkit.models.segmenter import Segmenter
from segkit.models.transfer import check_start, start_from_model
from segkit.models.weights import check_encoder_weights
from segkit.recipe.messages import suggest_name
from segkit.recipe.schema import LOSS_NAMES, Model, Recipe


def check_model_keys(recipe: Recipe) -> None:
    """Check what needs no data: losses, options of classical learners and baselines, parts without weights to keep.

    Raises
    ------
    RecipeError
        An option is not known, or a key does not fit the others.
    ModuleNotFoundError
        scikit-learn is not installed.
    """
    model, train = recipe.model, recipe.train
    for name in train.loss:
        if name not in LOSS_NAMES:
            raise RecipeError(f"train.loss: {name!r} is not known{suggest_name(name, LOSS_NAMES)}")
    for part in train.freeze:
        if model.start_from is None and (part != "encoder" or model.encoder_weights is None):
            needed = "model.encoder_weights or model.start_from" if part == "encoder" else "model.start_from"
            raise RecipeError(f"train.freeze: the {part} would keep random weights; give {needed}, or remove it")
    for learner in train.baselines:
        check_options(Model(architecture=learner))  # whether scikit-learn is there
    if model.is_classical:
        if train.devices != 1 or train.num_nodes != 1:
            raise RecipeError(
                f"{model.architecture} is fitted by one process; remove train.devices and train.num_nodes"
            )
        check_options(model)


def build_model(recipe: Recipe, band_names: Sequence[str]) -> Segmenter:
    """Build the model of a recipe for bands, with the weights that it starts from, but without downloads.

    Its normalisation is none. So it raises the errors that the start of a training raises.

    Raises
    ------
    RecipeError
        Architecture, encoder, an option or a band of the features is unknown, or weights do not fit the recipe.
    MissingFileError, ModelFileError
        A file of weights is missing, damaged or of another network.
    """
    check_start(recipe)
    none = [0.0] * len(band_names), [1.0] * len(band_names)
    segmenter = Segmenter(recipe, *none, band_names, pretrained=False)
    if not recipe.model.is_classical:
        check_encoder_weights(segmenter.network, recipe.model, band_names)
    if recipe.model.start_from is not None:
        start_from_model(segmenter, recipe.model.start_from)
    return segmenter
