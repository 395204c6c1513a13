"""Management commands against made-up answers: flags, words, exit statuses, and that nothing but vecsync's word is success."""

from __future__ import annotations

import io
import json
from typing import Any
from unittest import mock

from django.core.management import CommandError, call_command
from django.test import SimpleTestCase, override_settings

from django_vecsync.control import Bar

from . import rude
from .rude import Server

DONE = {"ended": {"status": 0, "text": "Read 3 rows.\n", "error": None}}


class CommandTests(SimpleTestCase):
    def run_command(self, behaviour: rude.Behaviour, *words: str, urls: list[str] | None = None) -> tuple[Any, ...]:
        server = Server(behaviour)
        self.addCleanup(server.close)
        out, err = io.StringIO(), io.StringIO()
        with override_settings(VECSYNC={"URL": [*(urls or []), server.url], "API_KEY": "key-of-the-tests-16"}):
            try:
                call_command(*words, stdout=out, stderr=err)
                status, said = 0, ""
            except CommandError as error:
                status, said = error.returncode, str(error)
        head, _, body = server.requests[0].partition(b"\r\n\r\n") if server.requests else (b"", b"", b"null")
        return status, out.getvalue(), said, head.split(b"\r\n")[0].decode(), json.loads(body), head.decode()

    def test_flags_are_handed_on(self) -> None:
        for words, path, flags in [
            (["sync_faqs_to_qdrant"], "sync", {"batch_size": 100}),
            (["sync_faqs_to_qdrant", "--force", "--batch-size", "7"], "sync", {"force": True, "batch_size": 7}),
            (["sync_faqs_to_qdrant", "--dry-run"], "sync", {"dry_run": True, "batch_size": 100}),
            (["sync_faqs_to_qdrant", "--stats-only"], "sync", {"stats_only": True, "batch_size": 100}),
            (["init_qdrant"], "init", {}),
            (["init_qdrant", "--health-check-only"], "init", {"health_check_only": True}),
            (["init_qdrant", "--validate", "--stats"], "init", {"validate": True, "stats": True}),
            (["init_qdrant", "--recreate"], "init", {"recreate": True}),
            (["init_qdrant", "--migrate", "--local-store-path", "m"], "init", {"migrate": True, "local_store_path": "m"}),
            (["test_qdrant"], "check", {}),
            (["test_qdrant", "--skip-health", "--skip-operations", "--verbose"], "check",
             {"skip_health": True, "skip_operations": True, "verbose": True}),
            (["test_qdrant", "--drill", "5"], "check", {"drill": 5}),
        ]:  # fmt: skip
            with self.subTest(words=words):
                status, out, _, request, body, head = self.run_command(rude.lines(DONE), *words)
                self.assertEqual((status, out, body), (0, "Read 3 rows.\n", flags))
                self.assertEqual(request, f"POST /control/{path} HTTP/1.1")
                self.assertIn("Authorization: Bearer key-of-the-tests-16", head)

    def test_the_pipeline_of_the_settings_is_named(self) -> None:
        server = Server(rude.lines(DONE))
        self.addCleanup(server.close)
        with override_settings(VECSYNC={"URL": server.url, "PIPELINE": "products"}):
            call_command("sync_faqs_to_qdrant", stdout=io.StringIO(), stderr=io.StringIO())
        self.assertTrue(server.requests[0].startswith(b"POST /pipelines/products/control/sync HTTP/1.1"))

    def test_the_exit_status_is_vecsyncs(self) -> None:
        for status in (1, 2, 3):
            ended = {"ended": {"status": status, "text": "one line\n", "error": "not well"}}
            found = self.run_command(rude.lines({"said": "ok      slot\n"}, None, ended), "test_qdrant")
            self.assertEqual(found[:3], (status, "ok      slot\none line\n", "not well"))

    def test_nothing_but_vecsyncs_word_is_success(self) -> None:
        passed = {"passed": {"label": "rows read", "done": 3, "total": 3}}
        for behaviour, wanted in [
            (rude.lines(passed), "ended before it had answered"),
            (rude.lines(passed, whole=False), "ended before it had answered"),
            (rude.lines(), "ended before it had answered"),
            (rude.lines({"ended": {}}), "not a vecsync's"),
            (rude.lines({"ended": {"status": 0, "text": "", "error": "but"}}), "but"),
            (rude.lines("done"), "ended before"),
            (rude.reply(200, {"ended": None}), "not a vecsync's"),
            (rude.reply(200, b"<html>"), "not a vecsync's"),
            (rude.problem(401, "wanted a key"), "wanted a key"),
            (rude.problem(403, "from this machine alone"), "from this machine alone"),
            (rude.problem(400, "batch_size: wanted"), "batch_size"),
            (rude.problem(404, "takes no commands"), "takes no commands"),
            (rude.reply(404, b"<html>", kind="text/html"), "not as a vecsync"),
            (rude.problem(503, "more commands"), "more commands"),
            (rude.hang_up, "not known whether it began"),
            (rude.garbage, "not known whether it began"),
            (rude.cut(b'{"passed": {"label"', 500, "application/x-ndjson"), "may be half done"),
            (rude.cut(b'{"said": "x"}\n', 500, "application/x-ndjson"), "may be half done"),
            (rude.lines({"ended": {"status": 256, "text": "", "error": None}}), "not a vecsync's"),
            (rude.lines({"ended": {"status": float("inf"), "text": "", "error": None}}), "not a vecsync's"),
            (rude.reply(200, b"[" * 100_000), "not a vecsync's"),
        ]:
            with self.subTest(wanted=wanted):
                status, _, said, *_ = self.run_command(behaviour, "sync_faqs_to_qdrant")
                # What is wrong with what was asked for is 2, as on a command line.
                self.assertEqual(status, 2 if "batch_size" in wanted else 1)
                self.assertIn(wanted, said)

    def test_an_address_that_is_dead_is_passed_over_before_anything_begins(self) -> None:
        dead = f"http://127.0.0.1:{rude.free_port()}"
        self.assertEqual(self.run_command(rude.lines(DONE), "sync_faqs_to_qdrant", urls=[dead])[0], 0)

    def test_a_command_that_was_begun_is_not_begun_elsewhere(self) -> None:
        first = Server(rude.lines({"said": "x\n"}))
        self.addCleanup(first.close)
        status, _, _, request, *_ = self.run_command(rude.lines(DONE), "sync_faqs_to_qdrant", urls=[first.url])
        self.assertEqual((status, request), (1, ""))

    def test_what_may_have_begun_is_not_begun_elsewhere(self) -> None:
        for behaviour in (
            rude.hang_up,
            rude.garbage,
            rude.reply(502, b"<html>", kind="text/html"),
            rude.problem(504, "lost it"),
        ):
            first = Server(behaviour)
            self.addCleanup(first.close)
            status, _, said, request, *_ = self.run_command(rude.lines(DONE), "sync_faqs_to_qdrant", urls=[first.url])
            self.assertEqual((status, request, len(first.requests)), (1, "", 1))
            self.assertIn("it is not known whether it began", said)
        # Who says that there is too much to do has not begun.
        busy = Server(rude.problem(503, "more commands than can be done at once"))
        self.addCleanup(busy.close)
        self.assertEqual(self.run_command(rude.lines(DONE), "sync_faqs_to_qdrant", urls=[busy.url])[0], 0)

    def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        terminal, file = Terminal(), io.StringIO()
        for output in (terminal, file):
            with mock.patch("django_vecsync.control.time.monotonic", side_effect=[0.0, 1.0, 6.0, 6.0, 7.0]):
                bar = Bar(output)
                for done in (10, 50, 60):
                    bar.passed("rows read", done, 100)
                bar.passed("counted", 5, 0) if output is terminal else None
                bar.clear()
        self.assertEqual(file.getvalue(), "rows read: 50 of 100 (50 %)\n")
        self.assertIn("rows read [" + "#" * 15 + "." * 15 + "] 50 of 100 (50 %)", terminal.getvalue())
        self.assertIn("counted [" + "." * 30 + "] 5", terminal.getvalue())
        self.assertTrue(terminal.getvalue().endswith("\r\x1b[K"))

    def test_wrong_flags_and_settings_are_status_2(self) -> None:
        for words, wanted in [
            (["init_qdrant", "--local-store-path", "x"], "--local-store-path: wanted with --migrate"),
            (["init_qdrant", "--health-check-only", "--stats"], "--health-check-only: wanted without"),
            (["init_qdrant", "--validate", "--recreate"], "--validate: wanted without --recreate"),
            (["init_qdrant", "--migrate", "--stats"], "--migrate: wanted without"),
            (["sync_faqs_to_qdrant", "--batch-size", "0"], "--batch-size 0: wanted 1 to 10000"),
            (["sync_faqs_to_qdrant", "--batch-size", "10001"], "--batch-size 10001: wanted 1 to 10000"),
            (["sync_faqs_to_qdrant", "--stats-only", "--force"], "--stats-only: wanted without"),
            (["test_qdrant", "--drill", "0"], "--drill 0: wanted 1 to 3600"),
            (["test_qdrant", "--drill", "5", "--skip-health"], "--drill: wanted without"),
        ]:
            found = self.run_command(rude.lines(DONE), *words)
            self.assertEqual((found[0], found[3]), (2, ""), words)
            self.assertIn(wanted, found[2])
        found = self.run_command(rude.problem(400, "which pipeline? ask another path"), "test_qdrant")
        self.assertEqual(found[0], 2)
        self.assertIn("VECSYNC['PIPELINE']", found[2])
        with override_settings(VECSYNC={"URL": "nowhere"}), self.assertRaises(CommandError) as raised:
            call_command("sync_faqs_to_qdrant")
        self.assertEqual(raised.exception.returncode, 2)
