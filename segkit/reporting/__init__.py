"""The report: one HTML page of a training, a map and their scores."""
