"""Which windows are worth labelling, and labels from the windows that people finished."""
