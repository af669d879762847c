"""crawlfleet: take, crawl, commit; PostgreSQL is the only state."""

__version__ = "0.1.0"
