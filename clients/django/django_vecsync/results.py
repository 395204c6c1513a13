"""What a store answers, as types. Parses JSON into them and does nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from .connection import FIELD_FAULTS
from .errors import VectorStoreProtocolError

Key = int | str | Mapping[str, Any]


@dataclass(frozen=True)
class Hit:
    """One row that fits."""

    #: The row's primary key: a number, a text, or a mapping where it has several columns.
    id: Key
    #: Cosine similarity, at most 1.
    score: float
    #: The part of the text that fits best.
    passage: str
    #: The columns that the pipeline file names.
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class SearchResults(Sequence[Hit]):
    """The rows that fit, the best first. Empty means that nothing fits: it is never a failure."""

    query: str
    hits: tuple[Hit, ...]
    #: The store that answered: ``qdrant`` or ``local``.
    served_by: str
    #: Not answered by the primary store, or by one that may lack changes.
    degraded: bool
    #: How far the answer may be behind the table, milliseconds; ``None``: not known.
    staleness_ms: int | None
    #: How long vecsync took, milliseconds.
    took_ms: int

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @classmethod
    def from_json(cls, body: Any) -> SearchResults:
        try:
            hits = tuple(
                Hit(id=row["id"], score=float(row["score"]), passage=str(row["passage"]), payload=dict(row["payload"]))
                for row in body["results"]
            )
            staleness = body["staleness_ms"]
            return cls(
                query=str(body["query"]),
                hits=hits,
                served_by=str(body["served_by"]),
                degraded=bool(body["degraded"]),
                staleness_ms=None if staleness is None else int(staleness),
                took_ms=int(body["took_ms"]),
            )
        except FIELD_FAULTS as error:
            raise VectorStoreProtocolError(f"the answer to a search is not a vecsync's: {error!r}") from error


@dataclass(frozen=True)
class StoreHealth:
    """How vecsync, or a part of it, is."""

    #: ``healthy``, ``degraded``, ``unhealthy``, or ``disabled`` where there is no such part.
    status: str
    #: What is wrong, where something is.
    errors: tuple[str, ...]
    #: The whole document.
    detail: Mapping[str, Any] = field(repr=False)

    @property
    def is_healthy(self) -> bool:
        return self.status == "healthy"

    @classmethod
    def from_json(cls, body: Any) -> StoreHealth:
        if not isinstance(body, dict) or not isinstance(body.get("status"), str):
            raise VectorStoreProtocolError("the answer about health is not a vecsync's: it has no status")
        errors = [body["error"]] if body.get("error") else []
        components = body.get("components")
        for name, part in components.items() if isinstance(components, dict) else ():
            if isinstance(part, dict) and part.get("error"):
                errors.append(f"{name}: {part['error']}")
        return cls(status=body["status"], errors=tuple(str(error) for error in errors), detail=body)


@dataclass(frozen=True)
class StoreStats:
    """What a store holds; ``None``: not known."""

    #: ``qdrant`` or ``local``.
    name: str
    status: str
    rows: int | None
    points: int | None
    #: How old what it holds may be, milliseconds.
    staleness_ms: int | None
    #: Changes that it has not taken yet.
    lag_records: int | None

    @classmethod
    def list_from_json(cls, body: Any) -> tuple[StoreStats, ...]:
        try:
            return tuple(
                cls(
                    name=str(store["name"]),
                    status=str(store["status"]),
                    rows=store["rows"],
                    points=store["points"],
                    staleness_ms=store["staleness_ms"],
                    lag_records=store["lag_records"],
                )
                for store in body["stores"]
            )
        except FIELD_FAULTS as error:
            raise VectorStoreProtocolError(f"the state is not a vecsync's: {error!r}") from error
