"""Classical learners as networks: features of single pixels, and a fitted classifier stored as arrays.

A learner maps features to scores like the layers of a network, so a `Segmenter` predicts, calibrates and saves both
alike. `segkit.training.classical` fits them with scikit-learn; a fitted one does not need it.
"""
