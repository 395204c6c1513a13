"""The management commands on a real vecsync with Qdrant: what they do, say, and how they end, in good and in bad states."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import psycopg

from tests.live import KEY, SEARCHING, SITE, World, get, wait_for

world: World


def setUpModule() -> None:
    global world
    world = World(with_qdrant=True)
    world.migrate()
    world.vecsync.start_ready()
    world.fill()
    all_healthy()


def tearDownModule() -> None:
    world.close()


def all_healthy() -> None:
    all_healthy_in(world)


def all_healthy_in(world: World, rows: int = 30) -> None:
    def look() -> bool:
        body = json.loads(get(f"{world.vecsync.url}/health/detailed/")[1] or "{}")
        assert body.get("status") == "healthy", body
        state = json.loads(get(f"{world.vecsync.url}/status", {"Authorization": f"Bearer {KEY}"})[1])
        stores = {store["name"]: (store["points"], store["lag_records"]) for store in state["stores"]}
        assert stores == {"qdrant": (rows, 0), "local": (rows, 0)}, stores
        return state["served_by"] == "qdrant"

    wait_for("both stores to have all rows, and Qdrant to answer", look)


class Commands(unittest.TestCase):
    def test_1_sync(self) -> None:
        said = world.manage("sync_faqs_to_qdrant")
        self.assertRegex(said.stdout, r"^Read 30 rows of the table in .*; 0 texts embedded, ")
        said = world.manage("sync_faqs_to_qdrant", "--force", "--batch-size", "7")
        self.assertNotIn("; 0 texts embedded", said.stdout)
        self.assertRegex(said.stdout, r"^Read 30 rows")
        said = world.manage("sync_faqs_to_qdrant", "--dry-run")
        self.assertIn("Nothing was written", said.stdout)
        self.assertIn("qdrant: 0 inserts, 0 updates, 0 deletes, 30 unchanged", said.stdout)
        said = world.manage("sync_faqs_to_qdrant", "--stats-only")
        self.assertRegex(said.stdout, r"source +30 rows")
        self.assertRegex(said.stdout, r"local +30 rows")

    def test_2_the_words_are_the_programs_own(self) -> None:
        by_program = world.vecsync.run("sync", "--dry-run")
        self.assertEqual(world.manage("sync_faqs_to_qdrant", "--dry-run").stdout, by_program.stdout)
        by_program = world.vecsync.run("init", "--stats")
        self.assertIn("30 rows", by_program.stdout)
        ours = world.manage("init_qdrant", "--stats").stdout
        self.assertEqual(ours.splitlines()[1:], by_program.stdout.splitlines()[1:])
        # And those of the program where neither data directory nor settings are.
        environment = {"VECSYNC_URL": world.vecsync.url, "VECSYNC_API_KEYS": KEY}
        with tempfile.TemporaryDirectory() as folder:
            program = [os.environ["VECSYNC_TEST_BIN"], "init"]
            for words in (["--stats"], ["--recreate"], ["--validate"]):
                said = subprocess.run(
                    [*program, *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
                )
                self.assertEqual(said.returncode, 0, said.stderr)
                if words == ["--stats"]:
                    self.assertEqual(said.stdout.splitlines()[1:], by_program.stdout.splitlines()[1:])
        all_healthy()

    def test_3_init(self) -> None:
        self.assertIn("is there already", world.manage("init_qdrant").stdout)
        self.assertIn("answers in", world.manage("init_qdrant", "--health-check-only").stdout)
        self.assertIn("as it would be made now", world.manage("init_qdrant", "--validate").stdout)
        self.assertIn("30 rows", world.manage("init_qdrant", "--recreate").stdout)
        all_healthy()
        refused = world.manage("init_qdrant", "--migrate", "--local-store-path", "/etc/passwd", code=2)
        self.assertIn("VECSYNC_DATA_DIR", refused.stderr)
        self.assertNotIn("root:", refused.stdout + refused.stderr)
        self.assertIn("validate: wanted without", world.manage("init_qdrant", "--validate", "--recreate", code=2).stderr)

    def test_4_check(self) -> None:
        said = world.manage("test_qdrant", "--verbose")
        for name in ("slot", "publication", "model", "Qdrant", "round trip", "server"):
            self.assertRegex(said.stdout, rf"(?m)^ok +{name} .* ms\)$")
        self.assertNotIn("failed", said.stdout)
        quick = world.manage("test_qdrant", "--skip-operations", "--skip-health")
        self.assertNotIn("round trip", quick.stdout)
        self.assertNotRegex(quick.stdout, r"(?m)^ok +server")
        self.assertRegex(world.manage("test_qdrant", "--drill", "1").stdout, r"ok +drill .* answered by the mirror")

    def test_4_a_drill_ends_with_who_asked_for_it(self) -> None:
        def served_by(wanted: str) -> bool:
            found = search()
            assert found.get("served_by") == wanted, found
            return True

        words = [sys.executable, "manage.py", "test_qdrant", "--drill", "120"]
        with subprocess.Popen(words, cwd=SITE, env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
            try:
                wait_for("the drill to begin", lambda: served_by("local"))
            finally:
                asking.kill()
        wait_for("Qdrant to answer long before the drill would have ended", lambda: served_by("qdrant"), 20.0)
        all_healthy()

    def test_5_a_wrong_key_and_none(self) -> None:
        for key in ("another-key-of-16-ch", ""):
            refused = world.manage("sync_faqs_to_qdrant", code=1, environment={"VECSYNC_API_KEYS": key})
            self.assertIn("401", refused.stderr)
            self.assertNotIn("another-key", refused.stderr)
        # One that may search finds rows, and commands nothing.
        environment = {"VECSYNC_API_KEYS": SEARCHING}
        for command in ("sync_faqs_to_qdrant", "init_qdrant", "test_qdrant"):
            refused = world.manage(command, code=1, environment=environment)
            self.assertIn("this key may search, and not command", refused.stderr)
        self.assertIn("rows by", world.run(["test_qdrant_simple.py"], environment=environment).stdout)

    def test_6_wrong_flags_are_status_2(self) -> None:
        self.assertIn("invalid int", world.manage("sync_faqs_to_qdrant", "--batch-size", "x", code=2).stderr)
        self.assertIn("--local-store-path", world.manage("init_qdrant", "--local-store-path", "x", code=2).stderr)

    def test_7_qdrant_is_away(self) -> None:
        assert world.qdrant
        world.qdrant.kill()
        said = world.manage("test_qdrant", "--skip-operations", code=3)
        self.assertRegex(said.stdout, r"(?m)^failed +Qdrant ")
        self.assertRegex(said.stderr, "as (it|they) should be")
        self.assertIn("CommandError", said.stderr)
        world.manage("init_qdrant", "--health-check-only", code=3)
        world.manage("init_qdrant", code=1)
        world.qdrant.start()
        all_healthy()

    def test_8_vecsync_is_away_or_ends_meanwhile(self) -> None:
        world.vecsync.stop()
        for command in ("sync_faqs_to_qdrant", "init_qdrant", "test_qdrant"):
            refused = world.manage(command, code=1)
            self.assertIn("no vecsync answers", refused.stderr)
        world.vecsync.start_ready()
        all_healthy()
        # A table that somebody holds: the command waits for it, and vecsync ends.
        # A connection says nothing of how far the question on it has come. One that is told to end may still say that capture has,
        # before it lets go of the connection.
        broken = "may be half done|not known whether it began"
        for number, word in ((signal.SIGKILL, broken), (signal.SIGTERM, f"{broken}|capture has ended")):
            with psycopg.connect(world.postgres.url("app")) as holder:
                holder.execute("LOCK TABLE faq_faq IN ACCESS EXCLUSIVE MODE")
                command = subprocess.Popen(
                    [sys.executable, "manage.py", "sync_faqs_to_qdrant"], cwd=SITE, env=world.environment,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
                wait_for("the command to be under way", lambda: connected(world.vecsync.port))
                world.vecsync.stop(number)
                out, err = command.communicate(timeout=30)
            self.assertEqual((command.returncode, out), (1, ""), err)
            self.assertRegex(err, word)
            world.vecsync.start_ready()
        all_healthy()

    def test_9_without_keys_this_machine_alone(self) -> None:
        world.vecsync.stop()
        keys = world.vecsync.settings.pop("VECSYNC_API_KEYS")
        world.vecsync.start_ready()
        all_healthy()
        self.assertIn("Read 30 rows", world.manage("sync_faqs_to_qdrant", environment={"VECSYNC_API_KEYS": ""}).stdout)
        status, body = post(f"{world.vecsync.url}/control/sync", {"X-Forwarded-For": "10.0.0.1"})
        self.assertEqual(status, 403)
        self.assertIn("VECSYNC_API_KEYS", body)
        world.vecsync.settings["VECSYNC_API_KEYS"] = keys


def connected(port: int) -> bool:
    """Whether somebody else than a probe has a connection to this port of loopback: the command."""
    wanted = f"0100007F:{port:04X}"
    with Path("/proc/net/tcp").open(encoding="ascii") as lines:
        return any(fields[2] == wanted and fields[3] == "01" for fields in (line.split() for line in lines))


def search() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(f"{world.vecsync.url}/search?q=Question", {"Authorization": f"Bearer {KEY}"})[1])
    return found


def post(url: str, headers: dict[str, str]) -> tuple[int, str]:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


if __name__ == "__main__":
    unittest.main()
