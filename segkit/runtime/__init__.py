"""How the process runs: progress, reading ahead, memory, several processes. Knows nothing of maps."""
