"""From the files of a recipe to training batches.

`pairing` finds images and labels, `labels` reads targets, `cache` stores decoded arrays, `split` and `leakage` separate
training from validation, `statistics`, `datasets` and `augmentation` feed the network, `check` and `preview` report.
A new label source, split or augmentation goes here.
"""
