"""Task: one declaration that fixes channels, activation, loss terms, targets, scored categories and decision.

A task has *targets* of *categories*. A task of mutually exclusive classes (binary, multiclass) has one target, in which
a pixel has one of several categories. A multilabel task has one target per class, with the categories "absent" and
"present". Every output channel of a network gives the probability of one category of one target. So each rule is one
formula over targets, for all task types.

Targets are int16 (T, H, W) or (N, T, H, W): the index of the category, or `IGNORE` where unlabelled. Soft targets, made
of cover fractions, are float32 (C, H, W) or (N, C, H, W): the fraction of each channel's category, or `IGNORE`.
"""

from __future__ import annotations

from dataclasses import dataclass

from segkit.task.encoding import LabelEncoding
from segkit.task.head import Head


@dataclass(frozen=True)
class Task(LabelEncoding, Head):
    """What is mapped, and everything that follows from it.

    ==========================  =======  =========  ==========================================================
    type                        head     channels   decision
    ==========================  =======  =========  ==========================================================
    binary                      softmax  2          argmax, or p(class) >= threshold
    binary                      sigmoid  1          p >= threshold
    multiclass                  softmax  k+1        argmax; background is channel 0
    multiclass, no background   softmax  k          argmax
    multiclass                  sigmoid  k          highest p of those at their threshold, else background
    multiclass, no background   sigmoid  k          highest p
    multilabel                  sigmoid  k          p_c >= threshold_c, for each class
    ==========================  =======  =========  ==========================================================

    Parameters
    ----------
    type
        "binary" (one class and background), "multiclass" (mutually exclusive classes) or "multilabel" (overlapping
        classes).
    classes
        In channel order.
    head
        "softmax" or "sigmoid". Default: softmax for mutually exclusive classes, sigmoid for overlapping ones.
    background
        Multiclass only: whether pixels may be in none of the classes. True by default.
    background_value
        Code of background ("none of the classes") in label rasters and in the map.
    never
        Overlapping classes only: lists of classes, no two of which share a pixel. Rules are checked, not enforced.
    implies
        Overlapping classes only: {class: classes that each of its pixels is of, too}.

    Raises
    ------
    TaskError
        The declaration contradicts itself.
    """
