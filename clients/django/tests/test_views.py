"""The health views: vecsync's words and status, and what is said where it says nothing."""

from __future__ import annotations

import json

from django.test import SimpleTestCase, override_settings

from . import rude
from .rude import Server


class ViewTests(SimpleTestCase):
    def ask(self, path: str, *behaviours: rude.Behaviour, method: str = "get") -> tuple[int, dict[str, object], list[str]]:
        server = Server(*behaviours) if behaviours else None
        url = server.url if server else f"http://127.0.0.1:{rude.free_port()}"
        with override_settings(VECSYNC={"URL": url}):
            answer = getattr(self.client, method)(path)
        asked = [request.split(b" ")[1].decode() for request in server.requests] if server else []
        if server:
            server.close()
        return answer.status_code, json.loads(answer.content or b"{}"), asked

    def test_vecsyncs_words_and_status_are_passed_on(self) -> None:
        for path in ("", "detailed/", "vector-store/", "qdrant/", "ready/"):
            for status in (200, 503):
                found = self.ask(f"/health/{path}", rude.reply(status, {"status": "x"}))
                self.assertEqual(found, (status, {"status": "x"}, [f"/health/{path}"]))
        self.assertEqual(self.ask("/health/ready", rude.reply(200, {"status": "x"}))[0], 200)

    def test_a_vecsync_that_is_away_is_said(self) -> None:
        for path in ("", "detailed/", "vector-store/", "qdrant/", "ready/"):
            status, body, _ = self.ask(f"/health/{path}")
            self.assertEqual((status, body["status"]), (503, "unhealthy"))
            self.assertIn("no vecsync answers", str(body["error"]))
        self.assertEqual(self.ask("/health/ready/")[1]["waits_for"], "vecsync")

    def test_the_address_that_answered_is_remembered(self) -> None:
        ill, well = Server(rude.reply(503, {"status": "x"})), Server(rude.reply(200, {"status": "y"}))
        self.addCleanup(ill.close)
        self.addCleanup(well.close)
        with override_settings(VECSYNC={"URL": [ill.url, well.url]}):
            for _ in range(3):
                self.assertEqual(self.client.get("/health/ready/").json(), {"status": "y"})
        self.assertEqual((len(ill.requests), len(well.requests)), (1, 3))

    def test_the_site_lives_without_vecsync(self) -> None:
        self.assertEqual(self.ask("/health/live/")[0], 200)

    def test_health_is_read_and_not_kept(self) -> None:
        self.assertEqual(self.ask("/health/", method="post")[0], 405)
        with override_settings(VECSYNC={"URL": "nonsense"}):
            answer = self.client.get("/health/")
        self.assertEqual(answer.status_code, 503)
        self.assertIn("no-store", answer["Cache-Control"])
