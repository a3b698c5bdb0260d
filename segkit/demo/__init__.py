"""A synthetic sample landscape, and a demo that trains, predicts, evaluates, vectorizes and reports on it.

What the demo shows goes into `run`, what the sample data looks like into `landscape/`.
"""
