"""A stand-in for trainings, for tests of what is trained."""

import json

import numpy as np
import torch
import yaml

from segkit.models.segmenter import Segmenter

SCORES = ("mean_iou", "macro_f1", "overall_accuracy")


class TrainingStandIn:
    """Stands for `train`: leaves random weights and scores where a training would leave learned ones."""

    def __init__(self):
        self.calls, self.stop_at = [], None

    def __call__(self, recipe, folder, *, resume, overwrite, force, show_progress):
        self.calls.append((folder, resume))
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        if self.stop_at == len(self.calls):
            raise KeyboardInterrupt
        torch.manual_seed(len(self.calls))
        model = Segmenter(recipe, [550.0] * 3, [50.0] * 3, ["r", "g", "b"])
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_var.uniform_(0.05, 0.3)
        model._receptive_field = 40  # takes a second to measure
        random = np.random.default_rng(len(self.calls))
        scores = random.random(len(SCORES)).tolist()
        metrics = dict(zip(SCORES, scores, strict=True))
        metrics["baselines"] = {"lda": {key: 1 - score for key, score in metrics.items()}}
        size = len(recipe.task.categories)
        counts = random.integers(1, 50, (recipe.task.n_targets, size, size)).tolist()
        metrics["confusion"] = {"matrix": counts[0] if recipe.task.n_targets == 1 else counts}
        metrics["epochs"] = dict.fromkeys(("kept", "finished", "planned"), recipe.train.epochs)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        model.metrics = metrics
        model.save(folder / "model.safetensors")

    def again(self):
        """Return which runs were trained since the last time, and whether they went on."""
        calls, self.calls = self.calls, []
        return [("/".join(folder.parts[-2:]), resume) for folder, resume in calls]
