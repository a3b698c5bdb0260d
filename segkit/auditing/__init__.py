"""Find labels that are probably wrong: classes, offsets and missing objects, by out-of-fold predictions."""
