"""Vector files that are written: one module for each family of formats, and the writer of all."""
