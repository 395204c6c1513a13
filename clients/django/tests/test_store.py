"""The store against servers that answer, refuse, hang and break. Real sockets; vecsync itself is tried elsewhere."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

from django.test import SimpleTestCase, override_settings

from django_vecsync import (
    QdrantVectorStore,
    VectorStore,
    VectorStoreError,
    VectorStoreFactory,
    VectorStoreOverloaded,
    VectorStoreProtocolError,
    VectorStoreRefused,
    VectorStoreTimeout,
    VectorStoreUnauthorized,
    VectorStoreUnavailable,
)

from . import rude
from .rude import ANSWER, Server

LOGGER = "faq.rag.components.vector_store"


class StoreTests(SimpleTestCase):
    def server(self, *behaviours: rude.Behaviour) -> Server:
        server = Server(*behaviours)
        self.addCleanup(server.close)
        return server

    def store(self, *urls: str, cls: type[VectorStore] = VectorStore, **settings: object) -> VectorStore:
        with override_settings(VECSYNC={"URL": list(urls), "TIMEOUT": 10.0, **settings}):
            return cls()

    def test_an_answer_is_typed(self) -> None:
        server = self.server(rude.reply(200, ANSWER))
        found = self.store(server.url, API_KEY="key-of-the-tests-16").search(
            "how?", 3, filters={"category": "a"}, min_score=0.1
        )
        self.assertEqual((len(found), found[0].id, found[0].payload["id"], next(iter(found)).score), (1, 1, 1, 0.5))
        self.assertEqual((found.served_by, found.degraded, found.staleness_ms, found.took_ms), ("local", False, 7, 3))
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"POST /search HTTP/1.1"))
        self.assertIn(b"Authorization: Bearer key-of-the-tests-16", head)
        self.assertEqual(json.loads(body), {"query": "how?", "limit": 3, "filter": {"category": "a"}, "min_score": 0.1})

    def test_nothing_found_is_an_empty_result_and_no_failure(self) -> None:
        found = self.store(self.server(rude.reply(200, {**ANSWER, "results": [], "staleness_ms": None})).url).search("x")
        self.assertEqual((len(found), bool(found), found.staleness_ms), (0, False, None))

    def test_a_pipeline_has_a_path_of_its_own(self) -> None:
        server = self.server(rude.reply(200, ANSWER))
        self.store(server.url + "/find/", PIPELINE="faq").search("x")
        self.assertTrue(server.requests[0].startswith(b"POST /find/pipelines/faq/search "), server.requests[0])

    def test_the_deadline_counts_and_not_what_a_connection_may_take(self) -> None:
        # An answer may take longer than a connection,
        server = self.server(rude.slow(rude.reply(200, ANSWER), 0.6))
        self.assertEqual(len(self.store(server.url, CONNECT_TIMEOUT=0.2, RETRIES=0).search("x")), 1)
        self.assertEqual(server.connections, 1)
        # and a connection that was kept has the deadline of who asks now, not of who opened it.
        server = self.server(rude.kept(rude.reply(200, ANSWER, close=False)), rude.silent)
        store = self.store(server.url, CONNECT_TIMEOUT=10.0, RETRIES=0)
        store.search("x")
        began = time.monotonic()
        with self.assertRaises(VectorStoreTimeout):
            store.search("x", timeout=0.3)
        self.assertLess(time.monotonic() - began, 3.0)
        self.assertEqual(server.connections, 1)

    def test_every_failure_has_its_exception(self) -> None:
        for behaviour, wanted, said in [
            (rude.problem(400, "limit: 0 is too few", parameter="limit"), VectorStoreRefused, "limit: 0"),
            (rude.problem(401, "wanted a key"), VectorStoreUnauthorized, "API_KEY"),
            (rude.problem(404, "no such path"), VectorStoreRefused, "no such path"),
            (rude.problem(413, "too large"), VectorStoreRefused, "too large"),
            (rude.problem(429, "busy", "Retry-After: 1\r\n"), VectorStoreOverloaded, "busy"),
            (rude.problem(503, "no store can answer: none is whole"), VectorStoreUnavailable, "none is whole"),
            (rude.problem(500, "it failed inside"), VectorStoreUnavailable, "inside"),
            (rude.reply(502, b"<html>", kind="text/html"), VectorStoreUnavailable, "502"),
            (rude.reply(404, b"<html>", kind="text/html"), VectorStoreProtocolError, "VECSYNC_URL"),
            (rude.reply(200, b"<html>", kind="text/html"), VectorStoreProtocolError, "VECSYNC_URL"),
            (rude.reply(200, b"{"), VectorStoreProtocolError, "JSON"),
            (rude.reply(200, {"results": [{}]}), VectorStoreProtocolError, "vecsync"),
            (rude.reply(200, []), VectorStoreProtocolError, "vecsync"),
            (rude.garbage, VectorStoreUnavailable, "cannot be asked"),
            (rude.hang_up, VectorStoreUnavailable, "cannot be asked"),
            (rude.silent, VectorStoreTimeout, "in time"),
        ]:
            with self.subTest(said=said, wanted=wanted):
                store = self.store(self.server(behaviour).url, TIMEOUT=0.4 if behaviour is rude.silent else 10, RETRIES=0)
                with self.assertRaisesMessage(wanted, said) as raised:
                    store.search("x")
                self.assertIs(type(raised.exception), wanted)
                self.assertIsInstance(raised.exception, VectorStoreError)

    def test_a_refusal_names_the_parameter_and_is_not_repeated(self) -> None:
        server = self.server(rude.problem(400, "limit: 0", parameter="limit"))
        with self.assertRaises(VectorStoreRefused) as raised:
            self.store(server.url).search("x", limit=0)
        self.assertEqual((raised.exception.parameter, raised.exception.status, len(server.requests)), ("limit", 400, 1))

    def test_what_json_cannot_say_is_refused_before_it_is_sent(self) -> None:
        server = self.server(rude.reply(200, ANSWER))
        with self.assertRaises(VectorStoreRefused):
            self.store(server.url).search("x", min_score=float("nan"))
        self.assertEqual(server.requests, [])

    def test_a_passing_failure_is_tried_again(self) -> None:
        server = self.server(rude.problem(503, "loading"), rude.hang_up, rude.reply(200, ANSWER))
        self.assertEqual(len(self.store(server.url, RETRIES=2).search("x")), 1)
        self.assertEqual(len(server.requests), 3)

    def test_attempts_are_counted(self) -> None:
        server = self.server(rude.problem(503, "loading"))
        with self.assertRaises(VectorStoreUnavailable) as raised:
            self.store(server.url, RETRIES=1).search("x")
        self.assertEqual((len(server.requests), raised.exception.status), (2, 503))

    def test_another_address_answers_in_its_place_and_is_asked_first_from_then_on(self) -> None:
        dead, alive = f"http://127.0.0.1:{rude.free_port()}", self.server(rude.reply(200, ANSWER))
        store = self.store(dead, alive.url, RETRIES=0)
        began = time.monotonic()
        store.search("x")
        ill = self.server(rude.problem(503, "no store"))
        store = self.store(ill.url, alive.url, RETRIES=0)
        store.search("x")
        store.search("x")
        self.assertEqual((len(ill.requests), len(alive.requests)), (1, 3))
        self.assertLess(time.monotonic() - began, 5)

    def test_an_answer_cut_short_is_broken_off_and_the_next_is_asked(self) -> None:
        cut, alive = self.server(rude.cut(b'{"query": "x", "res', 200)), self.server(rude.reply(200, ANSWER))
        self.assertEqual(len(self.store(cut.url, alive.url, RETRIES=0).search("x")), 1)
        with self.assertRaisesMessage(VectorStoreUnavailable, "broke its answer off"):
            self.store(cut.url, RETRIES=0).search("x")

    def test_an_address_that_is_not_ready_leaves_it_to_the_next(self) -> None:
        waiting = rude.reply(503, {"ready": False, "status": "unhealthy"})
        ill, well = self.server(waiting), self.server(rude.reply(200, {"ready": True, "status": "healthy"}))
        store = self.store(ill.url, well.url)
        self.assertTrue(store.is_ready())
        self.assertEqual(self.store(ill.url, well.url).document("/health/ready/")[0], 200)
        # Where none is better the first one's word is taken, and nobody is asked again.
        also, dead = self.server(waiting), f"http://127.0.0.1:{rude.free_port()}"
        asked = len(ill.requests)
        for urls in ((ill.url, also.url), (ill.url, dead), (dead, ill.url)):
            self.assertFalse(self.store(*urls).is_ready())
            self.assertEqual(self.store(*urls).document("/health/ready/")[0], 503)
        self.assertEqual((len(ill.requests) - asked, len(also.requests)), (6, 2))

    def test_numbers_are_of_the_pipeline(self) -> None:
        server = self.server(rude.reply(200, {"stores": []}))
        self.assertEqual(self.store(server.url, PIPELINE="faq").stats(), ())
        self.assertTrue(server.requests[0].startswith(b"GET /pipelines/faq/status "), server.requests[0])

    def test_whatever_comes_and_is_asked_has_its_exception(self) -> None:
        deep = b"[" * 100_000
        endless = json.dumps({**ANSWER, "took_ms": float("inf")}).encode()
        for behaviour in (rude.reply(200, deep), rude.reply(200, endless), rude.reply(400, deep), rude.reply(503, deep)):
            with self.assertRaises(VectorStoreError):
                self.store(self.server(behaviour).url, RETRIES=0).search("x")
        store = self.store(self.server(rude.reply(200, ANSWER)).url)
        for timeout in (float("nan"), float("inf"), 10**400, "5"):
            with self.assertRaises(VectorStoreRefused) as raised:
                store.search("x", timeout=timeout)  # type: ignore[arg-type]
            self.assertEqual(raised.exception.parameter, "timeout")
        nested: dict[str, object] = {}
        for _ in range(100_000):
            nested = {"x": nested}
        with self.assertRaises(VectorStoreRefused):
            store.search("x", filters=nested)  # type: ignore[arg-type]
        odd = dataclasses.replace(store.config, urls=("http://a..b", "http://127.0.0.1:1/\u00fc"))
        with self.assertRaises(VectorStoreUnavailable):
            VectorStore(odd).search("x")

    def test_a_silent_address_leaves_time_for_the_other(self) -> None:
        silent, alive = self.server(rude.silent), self.server(rude.reply(200, ANSWER))
        began = time.monotonic()
        self.assertEqual(len(self.store(silent.url, alive.url, TIMEOUT=4.0).search("x")), 1)
        self.assertLess(time.monotonic() - began, 3.9)

    def test_the_time_holds_whatever_the_server_does(self) -> None:
        for behaviour in (rude.silent, rude.drip, rude.drip_head):
            with self.subTest(behaviour=behaviour.__name__):
                store = self.store(self.server(behaviour).url, RETRIES=3)
                began = time.monotonic()
                with self.assertRaises(VectorStoreTimeout):
                    store.search("x", timeout=0.4)
                self.assertLess(time.monotonic() - began, 5)

    def test_a_connection_is_kept_and_one_that_went_stale_is_replaced(self) -> None:
        server = self.server(
            rude.kept(rude.reply(200, ANSWER, close=False)),
            rude.reply(200, ANSWER, close=False),
            rude.kept(rude.reply(200, ANSWER, close=False)),
        )
        store = self.store(server.url, RETRIES=0)
        store.search("x")
        store.search("x")
        self.assertEqual(server.connections, 1)
        # The second answer was the last on that connection, and did not say so.
        time.sleep(0.05)
        store.search("x")
        self.assertEqual((server.connections, len(server.requests)), (2, 3))

    def test_threads_share_a_store(self) -> None:
        server = self.server(rude.kept(rude.reply(200, ANSWER, close=False)))
        store, found = self.store(server.url), []
        threads = [threading.Thread(target=lambda: found.append(len(store.search("x")))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [1] * 8)

    def test_qdrant_alone_is_good_enough_for_who_names_it(self) -> None:
        server = self.server(rude.reply(200, {**ANSWER, "served_by": "qdrant"}), rude.reply(200, {**ANSWER, "degraded": True}))
        store = self.store(server.url, cls=QdrantVectorStore)
        self.assertEqual(store.search("x").served_by, "qdrant")
        with self.assertRaisesMessage(VectorStoreUnavailable, "Qdrant did not answer, local did"):
            store.search("x")

    def test_the_factory_makes_what_is_asked_for(self) -> None:
        self.assertIs(type(VectorStoreFactory.create_production_store()), VectorStore)
        self.assertIs(type(VectorStoreFactory.create_store("qdrant")), QdrantVectorStore)
        self.assertIs(type(VectorStoreFactory.create_store("local")), VectorStore)
        with self.assertRaisesMessage(ValueError, "faiss"):
            VectorStoreFactory.create_store("faiss")

    def test_the_log_says_how_it_went_and_never_what_was_asked(self) -> None:
        server = self.server(rude.reply(200, ANSWER), rude.problem(503, "no store"))
        store = self.store(server.url, RETRIES=0, API_KEY="canary-key-of-16-ch")
        with self.assertLogs(LOGGER, "DEBUG") as logged:
            store.search("canary-question")
            with self.assertRaises(VectorStoreUnavailable) as raised:
                store.search("canary-question")
        said = "\n".join(logged.output) + str(raised.exception)
        self.assertIn("1 results from local", said)
        self.assertIn("WARNING", said)
        self.assertNotIn("canary", said)

    def test_health_and_numbers(self) -> None:
        detail = {"status": "degraded", "components": {"qdrant": {"status": "unhealthy", "error": "refused"}, "local": {}}}
        state = {
            "stores": [{"name": "local", "status": "healthy", "rows": 3, "points": 4, "staleness_ms": 1, "lag_records": 0}]
        }
        server = self.server(rude.reply(503, detail), rude.reply(200, state), rude.reply(503, {"ready": False}), rude.hang_up)
        store = self.store(server.url)
        health = store.health()
        self.assertEqual((health.status, health.is_healthy, health.errors), ("degraded", False, ("qdrant: refused",)))
        self.assertEqual([(one.name, one.rows, one.points) for one in store.stats()], [("local", 3, 4)])
        self.assertFalse(store.is_ready())
        self.assertFalse(store.is_ready())
