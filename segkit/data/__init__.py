"""From the files of a recipe to batches: sources, splits, statistics, tiles, augmentation."""
