"""The error bodies of the Admin API and of its token endpoint."""

from __future__ import annotations

from crawlfleet.demo.exchange import Reply


def api_error(status: int, message: str) -> Reply:
    """An error body of the Admin API."""
    return Reply.of_json(status, {"error": {"code": status, "message": message, "more_info": {}}})


def oauth_error(status: int, error: str, description: str) -> Reply:
    """An error body of the token endpoint."""
    return Reply.of_json(status, {"error": error, "error_description": description})
