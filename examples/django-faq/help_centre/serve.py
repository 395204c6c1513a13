"""Serves the site with its static files by the standard library, threads and all: for one machine or a container of an example.

A site with visitors belongs behind a server made for that; it is help_centre.wsgi then.
usage: python -m help_centre.serve [HOST:PORT]     (default 127.0.0.1:8001)
"""

import signal
import socket
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.exceptions import SuspiciousFileOperation
from django.core.handlers.exception import response_for_exception
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase


class Handler(StaticFilesHandler):
    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        """A path that leads out of the folders of static files is not there either."""
        try:
            return super().get_response(request)
        except SuspiciousFileOperation as error:
            return response_for_exception(request, Http404(str(error)))


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, QuietHandler)

    def server_bind(self) -> None:
        # The standard one asks for this machine's name, which may take as long as a name server does.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]
        self.setup_environ()


class QuietHandler(WSGIRequestHandler):
    timeout = 30

    def log_message(self, *_args: object) -> None:
        """An access log is the business of what stands in front."""


def main() -> None:
    from .wsgi import application

    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001").rpartition(":")
    with Server((host, int(port))) as server:
        server.set_app(Handler(application))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"Help centre: http://{host}:{port}/   Ctrl-C stops it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
