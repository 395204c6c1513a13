"""The three scripts that are run after a deployment, where all is well and where it is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import unittest

from tests.live import SITE, World, get, wait_for
from tests.test_commands import all_healthy_in

world: World


def setUpModule() -> None:
    global world
    world = World(with_qdrant=True)
    world.migrate()
    world.vecsync.start_ready()
    world.fill()
    world.start_site()
    all_healthy_in(world)


def tearDownModule() -> None:
    world.close()


SIMPLE, HEALTH, PRODUCTION = "test_qdrant_simple.py", "test_health_endpoints.py", "test_qdrant_production.py"


class Scripts(unittest.TestCase):
    def site(self) -> list[str]:
        return ["--site", f"http://127.0.0.1:{world.site_port}"]

    def test_1_all_is_well(self) -> None:
        for words in ([SIMPLE], [SIMPLE, "--qdrant"], [HEALTH, *self.site()], [PRODUCTION, "--drill", "1"]):
            said = world.run(words).stdout
            self.assertNotRegex(said, "(?m)^failed")
            self.assertTrue(said.endswith("All is well.\n"), said)
        self.assertRegex(said, r"(?m)^ok +fallback drill +\d+ searches and none failed, [1-9]")
        self.assertRegex(said, r"(?m)^ok +recovery ")
        rows = world.postgres.execute("shop", "SELECT count(*) FROM faq_faq WHERE category = 'vecsync validation'")
        self.assertEqual(rows, [(0,)])

    def test_2_qdrant_is_away(self) -> None:
        assert world.qdrant
        world.qdrant.kill()
        wait_for("health to say so", lambda: '"degraded"' in get(f"{world.vecsync.url}/health/")[1].replace(" ", ""))
        said = world.run([SIMPLE], code=3)
        self.assertRegex(said.stdout, r"(?m)^ok +ready ")
        self.assertRegex(said.stdout, r"(?m)^failed +search +answered by local, degraded")
        self.assertIn("not as it should be", said.stderr)
        self.assertRegex(world.run([SIMPLE, "--qdrant"], code=3).stdout, r"(?m)^failed +search +VectorStoreUnavailable: Qdrant")
        said = world.run([HEALTH, *self.site()], code=3)
        self.assertRegex(said.stdout, r"(?m)^failed +/health/ +degraded, wanted healthy: /health/detailed/ says why \(")
        self.assertRegex(said.stdout, r"(?m)^failed +/health/detailed/ +degraded, wanted healthy: qdrant: ")
        self.assertRegex(said.stdout, r"(?m)^failed +/health/qdrant/ ")
        self.assertNotIn("failed", world.run([HEALTH, "--expect", "degraded", *self.site()]).stdout)
        world.run([HEALTH, "--expect", "unhealthy"], code=3)
        # Rows are written, found and removed all the same; the drill has nothing to try.
        said = world.run([PRODUCTION, "--drill", "1"], code=3)
        self.assertRegex(said.stdout, r"(?m)^ok +search ")
        self.assertRegex(said.stdout, r"(?m)^failed +fallback drill +there is nothing to try")
        self.assertRegex(said.stdout, r"(?m)^ok +remove ")
        world.qdrant.start()
        all_healthy_in(world)

    def test_3_capture_stands_still(self) -> None:
        world.postgres.execute("shop", "ALTER ROLE vecsync NOLOGIN")
        world.postgres.execute(
            "shop", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'vecsync'",
        )  # fmt: skip
        wait_for("health to say so", lambda: '"degraded"' in get(f"{world.vecsync.url}/health/")[1].replace(" ", ""))
        said = world.run([PRODUCTION, "--skip-drill", "--patience", "1"], code=3)
        self.assertRegex(said.stdout, r"(?m)^ok +write ")
        self.assertRegex(said.stdout, r"(?m)^failed +search +the row is found: not within 1 s")
        rows = world.postgres.execute("shop", "SELECT count(*) FROM faq_faq WHERE category = 'vecsync validation'")
        self.assertEqual(rows, [(0,)])
        world.postgres.execute("shop", "ALTER ROLE vecsync LOGIN")
        all_healthy_in(world)

    def test_4_vecsync_hangs_or_is_away(self) -> None:
        assert world.vecsync.process
        world.vecsync.process.send(signal.SIGSTOP)
        said = world.run([SIMPLE], code=3)
        self.assertRegex(said.stdout, r"(?m)^failed +ready +VectorStoreTimeout")
        world.vecsync.process.send(signal.SIGCONT)
        world.vecsync.stop()
        for words in ([SIMPLE], [HEALTH, *self.site()], [PRODUCTION, "--patience", "1"]):
            said = world.run(words, code=3)
            self.assertIn("failed", said.stdout)
            # Once, in the report.
            self.assertRegex(said.stderr, r"\A\s*\d+ things? (is|are) not as it should be\.\s*\Z")
        self.assertRegex(said.stdout, r"(?m)^failed +remove +the row is out of the table; ")
        # The site's own views say what they can, and that is as it has to be.
        found = world.run([HEALTH, "--expect", "unhealthy", *self.site()], code=3).stdout
        _, _, of_site = found.partition(f"http://127.0.0.1:{world.site_port}/health/")
        self.assertIn("no vecsync answers", of_site)
        self.assertNotRegex(of_site, "(?m)^failed")
        world.vecsync.start_ready()
        all_healthy_in(world)

    def test_5_wrong_settings_and_arguments_are_status_2(self) -> None:
        for script in (SIMPLE, HEALTH, PRODUCTION):
            world.run([script], code=2, environment={"VECSYNC_URL": "nowhere"})
            world.run([script, "--nonsense"], code=2)
            world.run([script], code=2, environment={"DATABASE_URL": ""})
        for words, wanted in [
            ([PRODUCTION, "--drill", "99999"], "--drill: 99999: wanted a number from 1 to 3600"),
            ([PRODUCTION, "--drill", "0"], "--drill"),
            ([PRODUCTION, "--patience", "-1"], "--patience"),
            ([PRODUCTION, "--patience", "nan"], "--patience"),
            ([HEALTH, "--site", "foo"], "--site: foo: wanted http://host:port"),
            ([HEALTH, "--site", "http://a b"], "--site"),
            ([SIMPLE, "--question", " "], "--question"),
        ]:
            said = world.run(words, code=2)
            self.assertEqual(said.stdout, "")
            self.assertIn(wanted, said.stderr)

    def test_6_who_is_told_to_end_removes_the_row(self) -> None:
        count = "SELECT count(*) FROM faq_faq WHERE category = 'vecsync validation'"
        for number in (signal.SIGTERM, signal.SIGKILL):
            words = [sys.executable, PRODUCTION, "--drill", "600"]
            with subprocess.Popen(words, cwd=SITE, env=world.environment, stdout=subprocess.PIPE, text=True) as asking:
                try:
                    wait_for("the row to be there", lambda: world.postgres.execute("shop", count) == [(1,)])
                    assert asking.stdout
                    for line in asking.stdout:
                        if line.startswith("ok       rolled back"):
                            break
                finally:
                    asking.send_signal(number)
                said = asking.stdout.read()
            if number == signal.SIGTERM:
                self.assertEqual(asking.returncode, 128 + number)
                self.assertRegex(said, r"(?m)^ok +remove ")
            left = 0 if number == signal.SIGTERM else 1
            self.assertEqual(world.postgres.execute("shop", count), [(left,)])
        all_healthy_in(world, rows=31)
        said = world.run([PRODUCTION, "--drill", "1"]).stdout
        self.assertRegex(said, r"(?m)^ok +earlier runs +removed what was left behind: 1 row ")
        self.assertEqual(world.postgres.execute("shop", count), [(0,)])
        all_healthy_in(world)

    def test_7_a_wrong_key_is_no_answer_to_bad_input(self) -> None:
        said = world.run([SIMPLE], code=3, environment={"VECSYNC_API_KEYS": "another-key-of-16-ch"}).stdout
        self.assertRegex(said, r"(?m)^failed +bad input +VectorStoreUnauthorized")


if __name__ == "__main__":
    unittest.main()
