#!/usr/bin/env python
"""Asks every health endpoint and looks whether the answers fit each other and the state that they name. Writes nothing.

usage: test_health_endpoints.py [--site URL] [--expect healthy|degraded|unhealthy]

Without --expect all must be healthy. With it the state must be that one, and every answer as it has to be in it: so a drill can
be looked at, too. --site asks the views of the site (http://host:8001) as well as vecsync.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from datetime import datetime
from typing import Any

from validation import NotSo, Report, Skipped, address, set_up

STATES = ("healthy", "degraded", "unhealthy")
TIMEOUT = 10.0


def ask(url: str) -> tuple[int, Any]:
    """Status and document; no key is sent, as a probe sends none."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 - the operator's own address
            status, kind, text = answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        status, kind, text = error.code, error.headers.get_content_type(), error.read()
    except OSError as error:
        raise NotSo(f"{url} does not answer: {_why(error)}") from error
    if kind != "application/json":
        raise NotSo(f"{url} answers {status} with {kind}")
    try:
        return status, json.loads(text)
    except ValueError as error:
        raise NotSo(f"{url} answers with no JSON: {error}") from error


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=address, metavar="URL", help="the site's address, to ask its views as well")
    parser.add_argument("--expect", choices=STATES, default="healthy")
    options = parser.parse_args()
    set_up()

    from django_vecsync import conf

    report = Report()
    for url in [*conf.load().urls, *([options.site] if options.site else [])]:
        print(f"{url}/health/")
        Endpoints(url, options.expect).look(report)
    return report.end()


class Endpoints:
    """Those of one address."""

    def __init__(self, url: str, expected: str) -> None:
        self.url, self.expected = url, expected

    def look(self, report: Report) -> None:
        for name, what in [
            ("/", self.summary),
            ("/detailed/", self.detailed),
            ("/vector-store/", self.vector_store),
            ("/qdrant/", self.qdrant),
            ("/ready/", self.ready),
            ("/live/", self.live),
        ]:
            report.look(f"/health{name}", what)

    def _both(self, path: str) -> tuple[int, dict[str, Any]]:
        """With the slash at its end and without: the same."""
        status, body = ask(f"{self.url}/health{path}")
        bare = ask(f"{self.url}/health{path.rstrip('/')}") if path != "/" else (status, body)
        if not isinstance(body, dict) or not isinstance(bare[1], dict):
            raise NotSo("the answer is no JSON object")
        if (bare[0], bare[1].get("status")) != (status, body.get("status")):
            raise NotSo(f"{status} {body.get('status')} with a slash, {bare[0]} {bare[1].get('status')} without")
        return status, body

    def _stated(self, path: str, states: tuple[str, ...] = STATES) -> tuple[int, dict[str, Any]]:
        status, body = self._both(path)
        if body.get("status") not in states:
            raise NotSo(f"status {body.get('status')!r}, wanted one of {', '.join(states)}")
        wanted = 503 if body["status"] == "unhealthy" else 200
        if status != wanted:
            raise NotSo(f"{body['status']} is answered with {status}, wanted {wanted}")
        try:
            datetime.fromisoformat(str(body["timestamp"]))
        except (KeyError, ValueError) as error:
            raise NotSo(f"timestamp: {error}") from error
        return status, body

    def _reason(self, body: dict[str, Any]) -> str:
        parts = body.get("components")
        parts = parts if isinstance(parts, dict) else {}
        errors = [f"{name}: {part['error']}" for name, part in parts.items() if isinstance(part, dict) and part.get("error")]
        return "; ".join([*([str(body["error"])] if body.get("error") else []), *errors])

    def summary(self) -> str:
        _, body = self._stated("/")
        if body["status"] != self.expected:
            reason = self._reason(body) or "/health/detailed/ says why"
            raise NotSo(f"{body['status']}, wanted {self.expected}: {reason}")
        return str(body["status"])

    def detailed(self) -> str:
        _, body = self._stated("/detailed/")
        if body["status"] != "healthy" and not self._reason(body):
            raise NotSo(f"{body['status']}, and no component says why")
        if body["status"] != self.expected:
            raise NotSo(f"{body['status']}, wanted {self.expected}: {self._reason(body)}".rstrip(": "))
        components = body.get("components")
        if body["status"] == "healthy" and not components:
            raise NotSo("no components are named")
        return f"{body['status']}: {self._reason(body) or ', '.join(components or ())}"

    def vector_store(self) -> str:
        _, body = self._stated("/vector-store/")
        if self.expected == "healthy" and body["status"] != "healthy":
            raise NotSo(f"{body['status']}: {self._reason(body) or '/health/detailed/ says why'}")
        return str(body["status"])

    def qdrant(self) -> str:
        _, body = self._stated("/qdrant/", (*STATES, "disabled"))
        if body["status"] == "disabled":
            raise Skipped("no Qdrant is configured")
        if body["status"] == "unhealthy":
            if not body.get("error"):
                raise NotSo("unhealthy without an error")
            if self.expected == "healthy":
                raise NotSo(str(body["error"]))
            return f"unhealthy, as it says: {body['error']}"
        collection = body.get("collection") or {}
        stats = collection.get("stats") or {}
        if stats.get("vector_dimension") != 384 or str(stats.get("distance_metric")).upper() != "COSINE":
            raise NotSo(f"the collection is {stats}, wanted 384 dimensions and COSINE")
        return f"{body['status']}: {collection.get('name')} has {stats.get('total_points')} points"

    def ready(self) -> str:
        status, body = self._both("/ready/")
        if (status == 200) != (body.get("ready") is True):
            raise NotSo(f"{status} with ready = {body.get('ready')!r}")
        if status != 200 and not body.get("waits_for"):
            raise NotSo("not ready, and it does not say what it waits for")
        wanted = 503 if self.expected == "unhealthy" else 200
        if status != wanted:
            raise NotSo(f"{status}, wanted {wanted}; it waits for {body.get('waits_for')}")
        return "ready" if status == 200 else f"not ready: it waits for {body['waits_for']}"

    def live(self) -> str:
        status, _ = self._both("/live/")
        if status != 200:
            raise NotSo(f"the process answers, and {status}")
        return "alive"


if __name__ == "__main__":
    sys.exit(main())
