"""A small HTTP server that misbehaves on purpose: what it does with each connection is written down by the test."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

ANSWER = {
    "query": "q",
    "results": [{"id": 1, "score": 0.5, "passage": "p", "payload": {"id": 1}}],
    "served_by": "local",
    "degraded": False,
    "staleness_ms": 7,
    "took_ms": 3,
}

Behaviour = Callable[[socket.socket, bytes], None]


def reply(status: int, body: Any, headers: str = "", kind: str = "application/json", close: bool = True) -> Behaviour:
    """Answers like a server that knows HTTP."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    end = "Connection: close\r\n" if close else ""

    def behave(client: socket.socket, _request: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n{end}{headers}\r\n"
        client.sendall(head.encode() + content)

    return behave


def problem(status: int, detail: str, headers: str = "", **more: Any) -> Behaviour:
    return reply(status, {"status": status, "detail": detail, **more}, headers, "application/problem+json")


def lines(*lines: Any, whole: bool = True) -> Behaviour:
    """A command's answer; broken off where it is not whole."""

    def behave(client: socket.socket, _request: bytes) -> None:
        client.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        for line in lines:
            text = (json.dumps(line) if line is not None else "").encode() + b"\n"
            client.sendall(f"{len(text):x}\r\n".encode() + text + b"\r\n")
        if whole:
            client.sendall(b"0\r\n\r\n")

    return behave


def cut(body: bytes, length: int, kind: str = "application/json") -> Behaviour:
    """Announces more than comes."""

    def behave(client: socket.socket, _request: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + body)

    return behave


def hang_up(client: socket.socket, _request: bytes) -> None:
    """Ends without a word."""


def silent(client: socket.socket, _request: bytes) -> None:
    """Says nothing for as long as anybody listens."""
    client.settimeout(30)
    client.recv(1)


def slow(behaviour: Behaviour, seconds: float) -> Behaviour:
    """The same after a while."""

    def behave(client: socket.socket, request: bytes) -> None:
        time.sleep(seconds)
        behaviour(client, request)

    return behave


def drip(client: socket.socket, _request: bytes) -> None:
    """Says a little again and again, so that no single read times out."""
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(600):
        try:
            client.sendall(b" ")
        except OSError:
            return
        time.sleep(0.05)


def drip_head(client: socket.socket, _request: bytes) -> None:
    """The same before the head has ended."""
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 600:
        try:
            client.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.05)


def garbage(client: socket.socket, _request: bytes) -> None:
    client.sendall(b"\x00\x01 SSH-2.0 hello\r\n\r\n")


class Server:
    """Behaves as told with each request in turn, the last behaviour for ever."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = list(behaviours)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        #: What was asked, whole requests.
        self.requests: list[bytes] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while request := self._read(client):
                self.requests.append(request)
                behave = self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]
                try:
                    behave(client, request)
                except OSError:
                    return
                if getattr(behave, "closes", True):
                    return

    @staticmethod
    def _read(client: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                piece = client.recv(65536)
            except OSError:
                return b""
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        named = (line.split(b":") for line in head.lower().split(b"\r\n"))
        length = next((int(parts[1]) for parts in named if parts[0] == b"content-length"), 0)
        while len(body) < length:
            body += client.recv(65536)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        self._listener.close()


def kept(behaviour: Behaviour) -> Behaviour:
    """The same, and the connection stays open."""

    def behave(client: socket.socket, request: bytes) -> None:
        behaviour(client, request)

    behave.closes = False  # type: ignore[attr-defined]
    return behave


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
