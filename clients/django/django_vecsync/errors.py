"""Why there is no answer. An empty list is never one of these, and none of these is ever an empty list."""

from __future__ import annotations


class VectorStoreError(Exception):
    """Every failure of a store."""


class VectorStoreUnavailable(VectorStoreError):
    """Nobody answered, or whoever did has no store that can: try again later. ``reason`` is vecsync's own where it gave one."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        #: HTTP status, where there was an answer.
        self.status = status
        #: Seconds after which asking again makes sense, where vecsync said so.
        self.retry_after = retry_after


class VectorStoreTimeout(VectorStoreUnavailable):
    """No answer within the time that a caller has."""


class VectorStoreOverloaded(VectorStoreUnavailable):
    """There is more load than vecsync takes (429)."""


class VectorStoreRefused(VectorStoreError):
    """The request is not one that vecsync answers: asking again changes nothing."""

    def __init__(self, message: str, *, status: int, parameter: str | None = None) -> None:
        super().__init__(message)
        #: HTTP status.
        self.status = status
        #: The parameter that is wrong, where it is one.
        self.parameter = parameter


class VectorStoreUnauthorized(VectorStoreRefused):
    """The API key is missing or not one of vecsync's (401), or commands are not taken from here without one (403)."""


class VectorStoreProtocolError(VectorStoreError):
    """What answered is not a vecsync."""
