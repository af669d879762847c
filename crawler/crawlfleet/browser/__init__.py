"""Chrome, from both sides of its control port.

In the worker: `pool` hands out pages, one a crawl, `context` makes the browser context, `page` is Selenium on it, `posts` sends what a page posts at a login, `keyhole`
what Selenium sees of Chrome, `cdp` the DevTools protocol, `chrome` the control port.

`crawlfleet chrome`, a process of its own beside each worker: `supervisor` runs the loop, `health` decides (pure), `launch` is
one Chrome with its chromedriver, `control` the port. `preflight` looks for what has to be there, `home` is the folder it works
in, `processes` what the kernel tells of processes.
"""
