#!/usr/bin/env python
"""Looks whether the store that pages use can be asked: after a deployment, from where the site runs. Writes nothing.

usage: test_qdrant_simple.py [--question TEXT] [--qdrant]
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from validation import NotSo, Report, Skipped, set_up

if TYPE_CHECKING:
    from django_vecsync import StoreStats


def behind(staleness_ms: int | None) -> str:
    return "how old it is, is not known" if staleness_ms is None else f"at most {staleness_ms} ms behind the table"


def held(store: StoreStats) -> str:
    count = f"{store.rows} rows" if store.points is None else f"{store.points} points"
    # What cannot be asked is as it was seen last.
    return f"has {count}" if store.status == "healthy" else f"is {store.status}, and had {count}"


def lacks(records: int | None) -> str:
    if records is None:
        return "how far it is behind, is not known"
    return f"{records} changes behind" if records else "nothing behind"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", default="How do I begin?", help="what is searched for")
    parser.add_argument("--qdrant", action="store_true", help="insist on answers that Qdrant gave")
    options = parser.parse_args()
    if not options.question.strip():
        parser.error("argument --question: wanted a text")
    set_up()

    from django_vecsync import QdrantVectorStore, SearchResults, VectorStoreFactory, VectorStoreRefused

    store = VectorStoreFactory.create_store("qdrant") if options.qdrant else VectorStoreFactory.create_production_store()
    report = Report()

    def ready() -> str:
        if not store.is_ready():
            # Says why, or raises what does.
            reasons = "; ".join(store.health().errors)
            raise NotSo(f"vecsync cannot answer searches: {reasons or 'it gives no reason'}")
        return f"{' or '.join(store.config.urls)} can answer searches"

    def health() -> str:
        health = store.health()
        if health.status == "disabled":
            raise NotSo("vecsync has no Qdrant") if isinstance(store, QdrantVectorStore) else Skipped("vecsync has no Qdrant")
        if not health.is_healthy:
            raise NotSo(f"{health.status}: {'; '.join(health.errors) or 'no reason given'}")
        return health.status

    def search() -> str:
        found: SearchResults = store.search(options.question, limit=3)
        if not found:
            raise NotSo(f"nothing was found for {options.question!r}: is the table empty?")
        if found.degraded:
            raise NotSo(f"answered by {found.served_by}, degraded: not from where it should be, {behind(found.staleness_ms)}")
        return f"{len(found)} rows by {found.served_by} in {found.took_ms} ms, {behind(found.staleness_ms)}"

    def order() -> str:
        found = store.search(options.question, limit=10)
        scores = [hit.score for hit in found]
        if scores != sorted(scores, reverse=True) or any(not hit.payload or not hit.passage for hit in found):
            raise NotSo("results are out of order, or without passage or payload")
        return f"{len(found)} results, the best first, each with passage and payload"

    def refusal() -> str:
        try:
            store.search(options.question, filters={"no such field": "x"})
        except VectorStoreRefused as refused:
            # A wrong key is refused as well.
            if refused.status != 400 or not refused.parameter:
                raise
            return f"bad input is refused with the parameter's name: {refused.parameter}"
        raise NotSo("a filter by a field that does not exist was taken")

    def stats() -> str:
        stores = store.stats()
        if not stores:
            raise NotSo("vecsync names no store")
        for one in stores:
            if not (one.rows or one.points):
                raise NotSo(f"{one.name} is empty")
        return "; ".join(f"{one.name} {held(one)}, {lacks(one.lag_records)}" for one in stores)

    # Without that the others would only repeat why.
    if report.look("ready", ready):
        report.look("health", health)
        report.look("search", search)
        report.look("results", order)
        report.look("bad input", refusal)
        report.look("stores", stats)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
