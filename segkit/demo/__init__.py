"""The sample landscape and the whole job on it."""
