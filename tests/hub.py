"""A weights hub on the loopback address: what the hub client asks of the real one, and no more."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Serve files of repositories; a context manager.

    Args:
        files: Content by `owner/name/file`.
        refused: HTTP status by `owner/name`, for repositories that exist and cannot be read.
    """

    def __init__(self, files: dict[str, bytes], refused: dict[str, int] | None = None) -> None:
        self.files = files
        self.refused = refused or {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def asked_for(self, text: str) -> list[str]:
        return [request for request in self.requests if text in request]

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            repository, _, file = self.path.lstrip("/").partition("/resolve/main/")
            content = hub.files.get(f"{repository}/{file}")
            if repository in hub.refused:
                self._refuse(hub.refused[repository], "GatedRepo")
            elif content is None:
                known = any(name.startswith(f"{repository}/") for name in hub.files)
                self._refuse(404, "EntryNotFound" if known else "RepoNotFound")
            else:
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if with_body:
                    self.wfile.write(content)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
