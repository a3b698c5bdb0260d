"""The network with its normalisation, the model file, and the folder of a training run."""
