module crawlfleet.dev/testbed/pause

go 1.24.0
