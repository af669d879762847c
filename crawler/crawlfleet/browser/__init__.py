"""Chrome: its supervisor (`crawlfleet chrome`), a process of its own beside each worker.

`supervisor` runs the loop, `health` decides (pure), `launch` is one Chrome with its chromedriver, `control` the port that the
worker steers it by. `preflight` looks for what has to be there, `home` is the folder it works in, `processes` what the
kernel tells of processes.
"""
