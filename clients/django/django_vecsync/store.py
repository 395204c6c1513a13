"""Stores: searches, health and numbers, asked of a running vecsync with time-outs, retries and several addresses."""

from __future__ import annotations

import http.client
import json
import logging
import random
import ssl
import time
from collections.abc import Mapping
from typing import Any

from . import conf, connection
from .errors import (
    VectorStoreError,
    VectorStoreOverloaded,
    VectorStoreProtocolError,
    VectorStoreRefused,
    VectorStoreTimeout,
    VectorStoreUnauthorized,
    VectorStoreUnavailable,
)
from .results import SearchResults, StoreHealth, StoreStats

logger = logging.getLogger("faq.rag.components.vector_store")

#: Pause before an attempt that follows a failed one at the same address, seconds; doubled each time, and jittered.
PAUSE = 0.05
#: Longest pause, whatever the server wishes for: the deadline is the caller's.
PAUSE_MAX = 1.0
#: Longest time that a caller may wait, seconds: a day.
TIMEOUT_MAX = 86_400.0
#: Statuses that another address, or the same a moment later, may answer otherwise.
PASSING = (429, 502, 503, 504)


class VectorStore:
    """Asks vecsync. It may be shared by threads and made once."""

    def __init__(self, config: conf.Config | None = None) -> None:
        self.config = config or conf.load()
        # The address that answered last is asked first.
        self._first = 0

    def search(
        self,
        query: str,
        limit: int = 5,
        *,
        min_score: float | None = None,
        filters: Mapping[str, str | int | float | bool] | None = None,
        timeout: float | None = None,
    ) -> SearchResults:
        """The rows that fit a question best.

        ``limit`` is 1 to 100, ``min_score`` -1 to 1; ``filters`` are fields that the pipeline file lists under
        ``index.filters``. Raises a :class:`VectorStoreError` where there is no answer; nothing found is an empty result.
        """
        body: dict[str, Any] = {"query": query, "limit": limit}
        if min_score is not None:
            body["min_score"] = min_score
        if filters:
            body["filter"] = dict(filters)
        began = time.monotonic()
        answer = self._ask("POST", self.config.path("/search"), body, timeout)
        results = SearchResults.from_json(_json(answer))
        logger.debug(
            "search: %d results from %s in %.1f ms (vecsync %d ms), degraded=%s, staleness_ms=%s",
            len(results),
            results.served_by,
            (time.monotonic() - began) * 1000,
            results.took_ms,
            results.degraded,
            results.staleness_ms,
        )
        self._check(results)
        return results

    def _check(self, results: SearchResults) -> None:
        """Raises for an answer that this store does not take. This one takes every answer."""

    def health(self, *, timeout: float | None = None) -> StoreHealth:
        """How every part of vecsync is. Raises where nobody answers."""
        return self._health("/health/detailed/", timeout)

    def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether a search would be answered now. Never raises for a vecsync that is away."""
        try:
            return self._ask("GET", self.config.path("/health/ready/"), None, timeout, retries=0, settles=(503,)).status == 200
        except VectorStoreError:
            return False

    def stats(self, *, timeout: float | None = None) -> tuple[StoreStats, ...]:
        """What each store holds and how far it is behind."""
        return StoreStats.list_from_json(_json(self._ask("GET", self.config.path("/status"), None, timeout)))

    def document(self, path: str, *, timeout: float | None = None) -> tuple[int, Any]:
        """Status and JSON of a health path as vecsync answers it, 503 included where no address has a better one."""
        answer = self._ask("GET", self.config.path(path), None, timeout, settles=(503,))
        return answer.status, _json(answer)

    def _health(self, path: str, timeout: float | None) -> StoreHealth:
        answer = self._ask("GET", self.config.path(path), None, timeout, settles=(503,))
        return StoreHealth.from_json(_json(answer))

    def _headers(self, has_body: bool) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "django-vecsync"}
        if has_body:
            headers["Content-Type"] = "application/json"
        if self.config.api_key:
            headers["Authorization"] = f"Bearer {self.config.api_key}"
        return headers

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout: float | None,
        *,
        retries: int | None = None,
        settles: tuple[int, ...] = (),
    ) -> connection.Answer:
        """Asks one address after the other, and again, until one answers or the time is over. All of this only reads.

        An answer with one of the statuses ``settles`` is taken where each address has been asked and none has a better one.
        """
        try:
            content = None if body is None else json.dumps(body, allow_nan=False).encode()
        except (TypeError, *connection.JSON_FAULTS) as error:
            raise VectorStoreRefused(f"the request cannot be written as JSON: {error}", status=400) from error
        limit = self.config.timeout if timeout is None else timeout
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit <= TIMEOUT_MAX:
            said = f"timeout = {limit!r}: wanted seconds, at most {TIMEOUT_MAX:g}"
            raise VectorStoreRefused(said, status=400, parameter="timeout")
        deadline = time.monotonic() + limit
        urls, attempts = self.config.urls, 1 + (self.config.retries if retries is None else retries)
        # Each address gets its turn, however few attempts there are.
        attempts = max(attempts, len(urls))
        failed: VectorStoreUnavailable | None = None
        settled: connection.Answer | None = None
        for attempt in range(attempts):
            place = (self._first + attempt) % len(urls)
            if settled and attempt >= len(urls):
                break
            try:
                answer = self._once(urls[place], method, path, content, deadline, limit, (200, *settles))
            except VectorStoreUnavailable as error:
                failed = error
                logger.debug("%s %s%s: attempt %d of %d: %s", method, urls[place], path, attempt + 1, attempts, error)
            else:
                if answer.status in settles:
                    settled = settled or answer
                    continue
                self._first = place
                return answer
            pause = 0.0
            if not settled and (attempt + 1) % len(urls) == 0 and attempt + 1 < attempts:
                pause = min(PAUSE * 2 ** (attempt // len(urls)), PAUSE_MAX) * random.uniform(0.5, 1.5)  # noqa: S311
                pause = max(pause, min(failed.retry_after or 0.0, PAUSE_MAX))
            if time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        if settled:
            return settled
        logger.warning("%s %s: %s", method, path, failed)
        raise failed or VectorStoreUnavailable("no address was asked")

    def _once(
        self,
        url: str,
        method: str,
        path: str,
        content: bytes | None,
        deadline: float,
        limit: float,
        takes: tuple[int, ...],
    ) -> connection.Answer:
        # With several addresses one that is silent must leave time for the others.
        if len(self.config.urls) > 1:
            deadline = min(deadline, time.monotonic() + limit / len(self.config.urls))
        headers = self._headers(content is not None)
        try:
            answer = connection.exchange(url, method, path, headers, content, deadline, self.config.connect_timeout)
        except connection.FAULTS as error:
            raise fault(url, error) from error
        if answer.status in takes and _is_json(answer):
            return answer
        raise refusal(url, answer)


class QdrantVectorStore(VectorStore):
    """Answers that Qdrant gave, and no others.

    Who names Qdrant wants to know when it is away: an answer of the mirror, which :class:`VectorStore` hands on as
    ``degraded``, is a :class:`VectorStoreUnavailable` here. It asks vecsync all the same, which has the model that makes
    vectors of questions; this process needs neither the model nor a Qdrant client.
    """

    def _check(self, results: SearchResults) -> None:
        if results.served_by != "qdrant":
            raise VectorStoreUnavailable(f"Qdrant did not answer, {results.served_by} did; VectorStore takes such answers")

    def health(self, *, timeout: float | None = None) -> StoreHealth:
        """How Qdrant is; ``disabled`` where vecsync has none."""
        return self._health("/health/qdrant/", timeout)

    def stats(self, *, timeout: float | None = None) -> tuple[StoreStats, ...]:
        return tuple(store for store in super().stats(timeout=timeout) if store.name == "qdrant")


class VectorStoreFactory:
    """Makes stores from the settings."""

    @staticmethod
    def create_production_store() -> VectorStore:
        """The store for pages: answers while either of vecsync's stores works, and says which did."""
        return VectorStore()

    @staticmethod
    def create_store(store_type: str | None = None) -> VectorStore:
        """By name: ``qdrant`` insists on Qdrant; ``local``, ``production`` and nothing are the production store."""
        if store_type == "qdrant":
            return QdrantVectorStore()
        if store_type in (None, "local", "production"):
            return VectorStore()
        raise ValueError(f"store_type = {store_type!r}: wanted qdrant, local or production")


def fault(url: str, error: BaseException) -> VectorStoreUnavailable:
    """What a failed exchange means for the caller."""
    if isinstance(error, TimeoutError):
        return VectorStoreTimeout(f"{url} did not answer in time")
    if isinstance(error, ConnectionRefusedError):
        return VectorStoreUnavailable(f"no vecsync answers at {url}: start it, or set VECSYNC_URL")
    if isinstance(error, ssl.SSLCertVerificationError):
        return VectorStoreUnavailable(f"the certificate of {url} is not trusted: {error.verify_message}")
    if isinstance(error, http.client.RemoteDisconnected):
        return VectorStoreUnavailable(f"{url} cannot be asked: it hung up without an answer")
    if isinstance(error, http.client.IncompleteRead):
        return VectorStoreUnavailable(f"{url} broke its answer off")
    if isinstance(error, http.client.HTTPException):
        # Its text has what came, which is anybody's.
        return VectorStoreUnavailable(f"{url} cannot be asked: what answers there does not speak HTTP; is it https?")
    return VectorStoreUnavailable(f"{url} cannot be asked: {error or type(error).__name__}")


def refusal(url: str, answer: connection.Answer) -> VectorStoreError:
    """What an answer that is not the wanted one means for the caller."""
    try:
        problem = json.loads(answer.body)
        detail, parameter = str(problem["detail"]), problem.get("parameter")
    except (RecursionError, *connection.FIELD_FAULTS):
        detail, parameter = "", None
    status = answer.status
    said = f"{url} answers {status}" + (f": {detail}" if detail else "")
    if status in PASSING:
        kind = VectorStoreOverloaded if status == 429 else VectorStoreUnavailable
        return kind(said, status=status, retry_after=_seconds(answer.headers.get("Retry-After")))
    if status in (401, 403) and detail:
        return VectorStoreUnauthorized(f"{said}; VECSYNC['API_KEY'] has it", status=status)
    if 400 <= status < 500 and detail:
        return VectorStoreRefused(said, status=status, parameter=parameter)
    if status == 500 and detail:
        return VectorStoreUnavailable(said, status=status)
    return VectorStoreProtocolError(f"{url} answers {status}, and not as a vecsync does; set VECSYNC_URL")


def _is_json(answer: connection.Answer) -> bool:
    # A proxy's own 503 is a page.
    return answer.headers.get_content_type() == "application/json"


def _json(answer: connection.Answer) -> Any:
    try:
        return json.loads(answer.body)
    except connection.JSON_FAULTS as error:
        raise VectorStoreProtocolError(f"the answer is no JSON: {error}") from error


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdigit() else None
