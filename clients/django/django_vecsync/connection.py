"""One HTTP exchange with one address, within a deadline that holds for all of it. Knows nothing of searches."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

#: Largest answer that is read: 100 rows of payload and passage are far below.
ANSWER_BYTES_MAX = 64 << 20
#: Connections to an address that are kept while nobody asks.
IDLE_MAX = 8
#: Longest line of a command's answer.
LINE_BYTES_MAX = 16 << 20
#: What a kept connection may fail with when the other side has closed it meanwhile.
STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
#: Everything that can go wrong on the way, time-outs included; a name that is none fails as its letters are encoded.
FAULTS = (OSError, http.client.HTTPException, UnicodeError)
#: What JSON that anybody may have written can fail with; nested deeply enough it exhausts the stack.
JSON_FAULTS = (ValueError, RecursionError)
#: What reading fields out of it can fail with: a number may be infinite.
FIELD_FAULTS = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class Unanswered(Exception):
    """What was asked for was sent, and no head of an answer came: it may have been begun."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class _Timed:
    """A socket whose deadline is a moment, whatever the number of reads and writes until then."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self.deadline = deadline
        # An answer may be read on after http.client has let its connection go.
        self._readers = 0
        self._is_let_go = False

    def _set(self) -> None:
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)

    def sendall(self, data: Any) -> None:
        self._set()
        self._sock.sendall(data)

    def recv_into(self, buffer: Any) -> int:
        self._set()
        return self._sock.recv_into(buffer)

    def makefile(self, *_args: Any, **_named: Any) -> io.BufferedReader:
        self._readers += 1
        return io.BufferedReader(_Reader(self), 65536)

    def close(self) -> None:
        self._is_let_go = True
        self._close_unread()

    def reader_closed(self) -> None:
        self._readers -= 1
        self._close_unread()

    def _close_unread(self) -> None:
        if self._is_let_go and self._readers <= 0:
            self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, sock: _Timed) -> None:
        super().__init__()
        self._timed = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._timed.reader_closed()
        super().close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, url: str, deadline: float, connect_timeout: float) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self.prefix = parts.path.rstrip("/")
        self._connect_timeout = connect_timeout
        self._deadline = deadline
        self._timed: _Timed | None = None
        super().__init__(parts.hostname or "", parts.port or (443 if self._is_tls else 80))

    def set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timed:
            self._timed.deadline = deadline

    def connect(self) -> None:
        left = min(self._connect_timeout, self._deadline - monotonic())
        if left <= 0:
            raise TimeoutError("timed out")
        sock = socket.create_connection((self.host, self.port), left)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._is_tls:
                sock = _tls_context().wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise
        self._timed = _Timed(sock, self._deadline)
        self.sock = self._timed


_context: ssl.SSLContext | None = None


def _tls_context() -> ssl.SSLContext:
    """What the system trusts; ``SSL_CERT_FILE`` names more. Made once: reading the system's roots takes a while."""
    global _context
    if _context is None:
        _context = ssl.create_default_context()
    return _context


#: Idle connections by process and address: a child that was forked must not use its parent's.
_kept: dict[tuple[int, str], list[_Connection]] = {}
_guard = threading.Lock()


def exchange(
    url: str, method: str, path: str, headers: dict[str, str], body: bytes | None, deadline: float, connect_timeout: float
) -> Answer:
    """Sends a request and reads the whole answer. Connections are kept for the next one."""
    with _guard:
        idle = _kept.setdefault((os.getpid(), url), [])
        connection = idle.pop() if idle else None
    if connection is not None:
        try:
            return _once(idle, connection, method, path, headers, body, deadline)
        except STALE:
            # Closed while it was idle; a fresh one tells what is really the case.
            pass
    fresh = _Connection(url, deadline, connect_timeout)
    return _once(idle, fresh, method, path, headers, body, deadline)


def _once(
    idle: list[_Connection],
    connection: _Connection,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes | None,
    deadline: float,
) -> Answer:
    response: http.client.HTTPResponse | None = None
    try:
        connection.set_deadline(deadline)
        connection.request(method, connection.prefix + path, body, headers)
        response = connection.getresponse()
        # A compressed answer was not asked for, and one without end would fill the memory.
        content = _whole(response)
    except BaseException:
        if response is not None:
            response.close()
        connection.close()
        raise
    with _guard:
        is_kept = not response.will_close and len(idle) < IDLE_MAX
        if is_kept:
            idle.append(connection)
    if not is_kept:
        connection.close()
    return Answer(response.status, response.headers, content)


def _whole(response: http.client.HTTPResponse) -> bytes:
    content = response.read(ANSWER_BYTES_MAX + 1)
    if len(content) > ANSWER_BYTES_MAX:
        raise http.client.HTTPException(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
    # Asked for so many bytes, http.client takes fewer than were announced for all.
    if response.length:
        raise http.client.IncompleteRead(content, response.length)
    return content


class Stream:
    """An answer that comes line by line, on a connection of its own. Leaving it gives up what it asked for."""

    def __init__(
        self, url: str, path: str, headers: dict[str, str], body: bytes, silence: float, connect_timeout: float
    ) -> None:
        self._silence = silence
        self._connection = _Connection(url, monotonic() + silence, connect_timeout)
        try:
            self._connection.connect()
            try:
                self._connection.request("POST", self._connection.prefix + path, body, headers)
                self._response = self._connection.getresponse()
            except FAULTS as error:
                raise Unanswered from error
        except BaseException:
            self._connection.close()
            raise
        self.status = self._response.status

    def whole(self) -> Answer:
        """All of it, where it is no stream but a refusal."""
        return Answer(self.status, self._response.headers, _whole(self._response))

    def lines(self) -> Iterator[Any]:
        """Each line's JSON. An empty line says that it is still at work; silence for too long is a time-out."""
        while True:
            self._connection.set_deadline(monotonic() + self._silence)
            line = self._response.readline(LINE_BYTES_MAX)
            if not line:
                return
            # Every line has its end, but for the last of an answer that is all there.
            if not line.endswith(b"\n") and self._response.length != 0:
                raise http.client.IncompleteRead(line)
            if line.strip():
                yield json.loads(line)

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
