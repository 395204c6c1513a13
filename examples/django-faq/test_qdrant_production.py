#!/usr/bin/env python
"""Tries the whole way through Django: a row is written, found, changed, removed; Qdrant is left out for a while and comes back.

usage: test_qdrant_production.py [--drill SECONDS] [--skip-drill] [--patience SECONDS]

The row has a category of its own and is removed again, whatever happens; what a run that was killed has left is removed by the
next one. Run one at a time. The drill has vecsync answer from its mirror for so
long (default 5 s): visitors get answers all the while, marked as degraded. It is skipped where vecsync has no Qdrant.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import threading
import time

from validation import NotSo, Report, Skipped, number, set_up, wait_for

CATEGORY = "vecsync validation"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--drill", type=number(int, 1, 3600), default=5, metavar="SECONDS", help="how long Qdrant is left out, 1 to 3600"
    )
    parser.add_argument("--skip-drill", action="store_true")
    parser.add_argument(
        "--patience", type=number(float, 0.1, 3600), default=15.0, metavar="SECONDS", help="how long a change may take"
    )
    options = parser.parse_args()
    set_up()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, end)
    report = Report()
    trial = Trial(options.patience)
    report.look("earlier runs", trial.clear)
    try:
        if report.look("write", trial.write) and report.look("search", trial.search):
            report.look("change", trial.change)
            report.look("rolled back", trial.roll_back)
            if report.look("fallback drill", lambda: trial.drill(0 if options.skip_drill else options.drill)):
                report.look("recovery", lambda: trial.recovery(options.skip_drill))
    finally:
        report.look("remove", trial.remove)
    return report.end()


def end(number: int, _frame: object) -> None:
    """Told to end: as if by Ctrl-C, so that the row is removed."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    sys.exit(128 + number)


class Trial:
    """One row's life."""

    def __init__(self, patience: float) -> None:
        from django_vecsync import VectorStoreFactory

        self.store = VectorStoreFactory.create_production_store()
        self.patience = patience
        self.word = secrets.token_hex(4)
        self.question = f"How is deployment {self.word} validated?"

    def clear(self) -> str:
        from faq.models import FAQ

        count, _ = FAQ.objects.filter(category=CATEGORY).delete()
        if not count:
            raise Skipped("none has left a row behind")
        return f"removed what was left behind: {count} row{'s' if count > 1 else ''}"

    def write(self) -> str:
        from faq.models import FAQ

        self.row = FAQ.objects.create(question=self.question, answer=f"By a row that says {self.word}.", category=CATEGORY)
        return f"FAQ {self.row.pk} is committed"

    def search(self) -> str:
        took = wait_for("the row is found", lambda: self._found() is not None, self.patience)
        return f"found {took * 1000:.0f} ms after its commit, by {self.served_by}"

    def change(self) -> str:
        self.row.answer = f"By a row that says {self.word} twice."
        self.row.save()
        took = wait_for("the new answer is found", lambda: self._found() == self.row.answer, self.patience)
        return f"the new answer is found after {took * 1000:.0f} ms"

    def roll_back(self) -> str:
        from django.db import transaction

        from faq.models import FAQ

        class Given(Exception):
            """Ends the transaction."""

        try:
            with transaction.atomic():
                FAQ.objects.filter(pk=self.row.pk).update(answer="This was rolled back.")
                raise Given
        except Given:
            pass
        self.row.answer = f"By a row that says {self.word} for the third time."
        self.row.save()
        seen: list[str | None] = []

        def third() -> bool:
            seen.append(self._found())
            return seen[-1] == self.row.answer

        wait_for("what came after it is found", third, self.patience)
        if "This was rolled back." in seen:
            raise NotSo("what was rolled back was found")
        return "what was rolled back was never found"

    def drill(self, seconds: int) -> str:
        if not seconds:
            raise Skipped("--skip-drill")
        if self._qdrant() == "disabled":
            raise Skipped("vecsync has no Qdrant")
        from django_vecsync import VectorStoreError, control

        ended: list[control.Ended | VectorStoreError] = []
        said: list[str] = []

        def have_it_done() -> None:
            # What else there is to check is not asked for here: the drill alone decides.
            try:
                ended.append(control.run("check", {"drill": seconds}, said=said.append))
            except VectorStoreError as error:
                ended.append(error)

        thread = threading.Thread(target=have_it_done, daemon=True)
        thread.start()
        searches, local = 0, 0
        while thread.is_alive():
            # Any failure here is one that a visitor would have seen.
            found = self._search()
            searches, local = searches + 1, local + (found.served_by == "local")
            time.sleep(0.05)
        thread.join()
        if isinstance(ended[0], VectorStoreError):
            raise ended[0]
        line = next((line for line in "".join(said).splitlines() if line.split()[1:2] == ["drill"]), "")
        if not line.startswith("ok"):
            raise NotSo(line.partition(" drill ")[2] or ended[0].error or "vecsync said nothing of the drill")
        if not local:
            raise NotSo(f"none of {searches} searches was answered by the mirror")
        return f"{searches} searches and none failed, {local} of them answered by the mirror"

    def recovery(self, skipped: bool) -> str:
        if skipped or self._qdrant() == "disabled":
            raise Skipped("there was no drill")
        took = wait_for("Qdrant answers again", lambda: self._search().served_by == "qdrant", 60.0)
        return f"Qdrant answers again after {took:.1f} s"

    def remove(self) -> str:
        from faq.models import FAQ

        # By its question: it may be committed without this having been told so.
        count, _ = FAQ.objects.filter(category=CATEGORY, question=self.question).delete()
        if not count:
            raise Skipped("no row was written")
        from django_vecsync import VectorStoreError

        try:
            self._found()
        except VectorStoreError as error:
            raise NotSo(f"the row is out of the table; whether a search still finds it cannot be asked: {error}") from error
        took = wait_for("the row is gone", lambda: self._found() is None, self.patience)
        return f"the row is gone after {took * 1000:.0f} ms"

    def _search(self):
        found = self.store.search(self.question, limit=1, filters={"category": CATEGORY})
        self.served_by = found.served_by
        return found

    def _found(self) -> str | None:
        """The row's answer as a search gives it."""
        return next((str(hit.payload["answer"]) for hit in self._search() if hit.payload["question"] == self.question), None)

    def _qdrant(self) -> str:
        from django_vecsync import StoreHealth

        return StoreHealth.from_json(self.store.document("/health/qdrant/")[1]).status


if __name__ == "__main__":
    sys.exit(main())
