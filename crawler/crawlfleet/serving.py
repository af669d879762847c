"""`/metrics` and `/healthz` of a worker, on one port, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from crawlfleet.errors import BadConfiguration

_TEXT = "text/plain; charset=utf-8"


class Server:
    """Serves until `stop`. `is_well` is asked at each `/healthz`: progress, not mere life."""

    def __init__(self, port: int, is_well: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content_type, body = _answer(self.path, is_well)
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """A scrape is no event."""

        try:
            self._server = ThreadingHTTPServer(("", port), Handler)
        except OSError as exc:
            raise BadConfiguration(
                f"CRAWLFLEET_METRICS_PORT: cannot listen on {port}: {exc.strerror}; free it or set another (0: any)"
            ) from exc
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _answer(path: str, is_well: Callable[[], bool]) -> tuple[int, str, bytes]:
    if path == "/metrics":
        return 200, CONTENT_TYPE_LATEST, generate_latest()
    if path != "/healthz":
        return 404, _TEXT, b"/metrics or /healthz\n"
    if is_well():
        return 200, _TEXT, b"ok\n"
    return 503, _TEXT, b"the loop does not turn, or permits are not renewed\n"
