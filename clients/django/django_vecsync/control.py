"""Has a running vecsync do a command, and passes on what it says. Succeeds only where vecsync itself says so."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from . import conf, connection, store
from .errors import VectorStoreError, VectorStoreProtocolError, VectorStoreRefused, VectorStoreUnavailable

#: Exit statuses, vecsync's own.
FAILED, MISUSED = 1, 2
#: Statuses of who has not begun what it was asked for, and may later.
BUSY = (429, 503)
#: vecsync says every 5 s that it is still at work.
SILENCE = 30.0
#: Between two lines about progress where there is no terminal, seconds.
LINE_EVERY = 5.0


@dataclass(frozen=True)
class Ended:
    """How a command ended, in vecsync's words."""

    status: int
    text: str
    error: str | None


def run(
    name: str,
    flags: Mapping[str, Any],
    *,
    said: Callable[[str], object] = lambda text: None,
    passed: Callable[[str, int, int], object] = lambda label, done, total: None,
    config: conf.Config | None = None,
) -> Ended:
    """Asks one address after the other until one takes the command. What was begun, or may have been, is never begun again
    elsewhere: only one that cannot be reached, or says that it has too much to do, is passed over."""
    config = config or conf.load()
    failed: VectorStoreUnavailable | None = None
    for url in config.urls:
        try:
            stream = _begin(config, url, name, flags)
        except VectorStoreUnavailable as error:
            if not isinstance(error.__cause__, connection.FAULTS) and error.status not in BUSY:
                raise
            failed = error
            continue
        with stream:
            return _follow(stream, url, said, passed)
    raise failed or VectorStoreUnavailable("no address was asked")


def _begin(config: conf.Config, url: str, name: str, flags: Mapping[str, Any]) -> connection.Stream:
    headers = {"Accept": "application/x-ndjson", "Content-Type": "application/json", "User-Agent": "django-vecsync"}
    if config.command_key:
        headers["Authorization"] = f"Bearer {config.command_key}"
    try:
        body = json.dumps(flags, allow_nan=False).encode()
    except (TypeError, *connection.JSON_FAULTS) as error:
        raise VectorStoreRefused(f"the flags cannot be written as JSON: {error}", status=400) from error
    try:
        stream = connection.Stream(url, config.path(f"/control/{name}"), headers, body, SILENCE, config.connect_timeout)
    except connection.Unanswered as error:
        fault = store.fault(url, error.__cause__ or error)
        said = f"{fault}; it was asked for {name!r}, and it is not known whether it began"
        raise type(fault)(said) from error
    except connection.FAULTS as error:
        raise store.fault(url, error) from error
    if stream.status == 200:
        return stream
    with stream:
        try:
            answer = stream.whole()
        except connection.FAULTS as error:
            failed = store.fault(url, error)
            # It counts as what its head says.
            failed.status = stream.status
            raise failed from None
    refusal = store.refusal(url, answer)
    if isinstance(refusal, VectorStoreUnavailable) and stream.status not in BUSY:
        # A proxy that lost who it had asked says 502 or 504.
        raise VectorStoreUnavailable(f"{refusal}; it is not known whether it began", status=stream.status)
    raise refusal


def _follow(
    stream: connection.Stream,
    url: str,
    said: Callable[[str], object],
    passed: Callable[[str, int, int], object],
) -> Ended:
    broken = f"{url} ended before it had answered; what it was asked for may be half done"
    try:
        for line in stream.lines():
            if "ended" in line:
                ended = line["ended"]
                status = int(ended["status"])
                # A process has these; 256 would be taken for 0.
                if not 0 <= status <= 255:
                    raise ValueError(f"status {status}")
                return Ended(status, str(ended["text"]), None if ended["error"] is None else str(ended["error"]))
            if "said" in line:
                said(str(line["said"]))
            if "passed" in line:
                far = line["passed"]
                passed(str(far["label"]), int(far["done"]), int(far["total"]))
    except connection.FAULTS as error:
        raise VectorStoreUnavailable(f"{broken} ({error or type(error).__name__})") from error
    except (RecursionError, *connection.FIELD_FAULTS) as error:
        raise VectorStoreProtocolError(f"the answer of {url} is not a vecsync's: {error!r}") from error
    raise VectorStoreUnavailable(broken)


def misused(*problems: str | None) -> None:
    """Ends a command with status 2 and the first problem with its flags."""
    for problem in problems:
        if problem:
            raise CommandError(problem, returncode=MISUSED)


class Bar:
    """How far it is: redrawn on a terminal, a line every few seconds elsewhere. Writes to standard error."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._is_terminal = output.isatty()
        self._told = time.monotonic()
        self._is_drawn = False

    def passed(self, label: str, done: int, total: int) -> None:
        of = f" of {total} ({min(done, total) * 100 // total} %)" if total else ""
        if self._is_terminal:
            width = 30
            full = min(done, total) * width // total if total else 0
            self._output.write(f"\r\x1b[K{label} [{'#' * full}{'.' * (width - full)}] {done}{of}")
            self._output.flush()
            self._is_drawn = True
        elif time.monotonic() - self._told >= LINE_EVERY:
            self._told = time.monotonic()
            self._output.write(f"{label}: {done}{of}\n")
            self._output.flush()

    def clear(self) -> None:
        if self._is_drawn:
            self._output.write("\r\x1b[K")
            self._output.flush()
            self._is_drawn = False


class RemoteCommand(BaseCommand):
    """A management command that vecsync does: its flags, its words, its exit status."""

    #: vecsync's name of it.
    remote: str
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own way to say so

    def flags(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What of the options vecsync is to know."""
        raise NotImplementedError

    def handle(self, *_args: Any, **options: Any) -> None:
        # BaseCommand's own wrapper would end each piece with a line break.
        bar = Bar(getattr(self.stderr, "_out", sys.stderr))

        def said(text: str) -> None:
            bar.clear()
            self.stdout.write(text, ending="")
            self.stdout.flush()

        try:
            ended = run(self.remote, self.flags(options), said=said, passed=bar.passed)
        except ImproperlyConfigured as error:
            raise CommandError(str(error), returncode=MISUSED) from error
        except VectorStoreRefused as error:
            # As on a command line: what was asked for is wrong, and nothing was done.
            hint = "; VECSYNC['PIPELINE'] names it" if "which pipeline" in str(error) else ""
            raise CommandError(f"{error}{hint}", returncode=MISUSED if error.status == 400 else FAILED) from error
        except VectorStoreError as error:
            raise CommandError(str(error), returncode=FAILED) from error
        finally:
            bar.clear()
        self.stdout.write(ended.text, ending="")
        if ended.status != 0 or ended.error:
            raise CommandError(ended.error or "vecsync gave no reason", returncode=ended.status or FAILED)
