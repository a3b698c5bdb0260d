"""How the process runs: progress, threads, memory, distributed training, deprecated names, tables on the console.

Nothing here knows rasters or maps. Changes to threading, allocation or console output go here.
"""
