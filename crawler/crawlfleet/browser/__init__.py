"""Chrome: its supervisor (`crawlfleet chrome`), a process of its own beside each worker.

`supervisor` runs the loop, `launch` is one Chrome with its chromedriver, `control` the port that the worker steers it
by, `preflight` what has to be there, `processes` what the kernel tells of processes.
"""
