"""Training a network: losses, the loop, comparisons of recipes, a baseline."""
