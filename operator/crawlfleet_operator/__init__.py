"""The Kubernetes operator of crawlfleet: a client of the same planner and store that local mode uses."""
