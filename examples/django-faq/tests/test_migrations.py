"""The site's tables: made from nothing, taken over from vecsync's sample, published and back, loaded with text."""

from __future__ import annotations

import json
import os
import unittest
from pathlib import Path
from typing import Any

from tests.live import SITE, World

world: World
ROOT = SITE.parent.parent
#: Does the operation with all that it can do, and undoes it: on or off, and the publication.
PROGRAM = """
import django; django.setup()
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django_vecsync.operations import Publish
import sys
state = MigrationExecutor(connection).loader.project_state()
operation = Publish("FAQ", publication=sys.argv[2], replica_identity="full", grant_to="vecsync")
with connection.schema_editor() as editor:
    move = operation.database_forwards if sys.argv[1] == "on" else operation.database_backwards
    move("faq", editor, state, state)
name, args, named = operation.deconstruct()
assert Publish(*args, **named).deconstruct() == (name, args, named)
try:
    Publish("FAQ", publication='a"b')
except ValueError:
    pass
else:
    raise AssertionError("a quote was taken")
"""
PUBLISHED = "SELECT tablename FROM pg_publication_tables WHERE pubname = 'vecsync_faq'"


def setUpModule() -> None:
    global world
    world = World()


def tearDownModule() -> None:
    world.close()


class Migrations(unittest.TestCase):
    def test_the_migrations_are_those_of_the_models(self) -> None:
        world.manage("makemigrations", "--check", "--dry-run")

    def test_the_sample_table_is_taken_over(self) -> None:
        world.postgres.execute("postgres", "CREATE DATABASE given OWNER app")
        sample = (ROOT / "sql" / "faq_sample.sql").read_text()
        insert = "INSERT INTO faq_faq (question, answer, category) VALUES ('Kept?', 'Yes.', 'x')"
        world.postgres.execute("given", sample, insert, user="app")
        given = {"DATABASE_URL": world.postgres.url("app", "given")}
        world.manage("migrate", "--fake-initial", "--verbosity", "0", environment=given)
        self.assertEqual(world.postgres.execute("given", "SELECT answer FROM faq_faq"), [("Yes.",)])
        self.assertEqual(world.postgres.execute("given", PUBLISHED), [("faq_faq",)])
        # Django's own table has the same columns, so that nothing differs by who made it.
        world.migrate()
        columns = (
            "SELECT column_name, data_type, character_maximum_length, is_nullable, is_identity FROM information_schema.columns "
            "WHERE table_name = 'faq_faq' ORDER BY column_name"
        )
        self.assertEqual(world.postgres.execute("given", columns), world.postgres.execute("shop", columns))

    def test_publishing_goes_back_and_forth(self) -> None:
        world.migrate()
        self.assertEqual(world.postgres.execute("shop", PUBLISHED), [("faq_faq",)])
        world.manage("migrate", "faq", "0001", "--verbosity", "0")
        self.assertEqual(world.postgres.execute("shop", "SELECT 1 FROM pg_publication"), [])
        # Somebody has published another table under that name: it stays, and is left with what it had.
        world.postgres.execute("shop", "CREATE PUBLICATION vecsync_faq FOR TABLE auth_user", user="app")
        world.manage("migrate", "faq", "--verbosity", "0")
        published = {row[0] for row in world.postgres.execute("shop", PUBLISHED)}
        self.assertEqual(published, {"auth_user", "faq_faq"})
        world.manage("migrate", "faq", "0001", "--verbosity", "0")
        self.assertEqual(world.postgres.execute("shop", PUBLISHED), [("auth_user",)])
        world.postgres.execute("shop", "DROP PUBLICATION vecsync_faq")
        world.manage("migrate", "faq", "--verbosity", "0")
        said = world.manage("sqlmigrate", "faq", "0002").stdout
        self.assertIn('CREATE PUBLICATION "vecsync_faq" FOR TABLE "faq_faq"', said)

    def publish(self, way: str, publication: str = "Odd % name") -> str:
        """The whole operation, on or off, as app; what it warned of."""
        settings = {"DJANGO_SETTINGS_MODULE": "help_centre.settings"}
        return world.run(["-c", PROGRAM, way, publication], environment=settings).stderr

    def state(self) -> tuple[Any, ...]:
        """Replica identity, whether vecsync may read, which tables the publications name."""
        identity = "SELECT relreplident::text, has_table_privilege('vecsync', oid, 'SELECT') FROM pg_class WHERE oid = 'faq_faq'::regclass"
        named = (
            "SELECT pubname, count(prrelid) FROM pg_publication p LEFT JOIN pg_publication_rel r ON prpubid = p.oid GROUP BY 1"
        )
        return (*world.postgres.execute("shop", identity)[0], dict(world.postgres.execute("shop", named)))

    def begin_without_publication(self) -> None:
        world.migrate()
        drop = [f'DROP PUBLICATION "{name}"' for name in self.state()[2]]
        world.postgres.execute("shop", *drop, "REVOKE SELECT ON faq_faq FROM vecsync")
        self.addCleanup(world.manage, "migrate", "faq", "--verbosity", "0")
        self.addCleanup(world.manage, "migrate", "faq", "0001", "--verbosity", "0")

    def test_the_whole_operation(self) -> None:
        self.begin_without_publication()
        self.publish("on")
        self.assertEqual(self.state(), ("f", True, {"Odd % name": 1}))
        # Again changes nothing, and does not make it forget.
        self.publish("on")
        self.assertEqual(self.publish("off"), "")
        self.assertEqual(self.state(), ("d", False, {}))

    def test_the_replica_identity_becomes_what_it_was(self) -> None:
        self.begin_without_publication()
        run, unique = world.postgres.execute, 'ALTER TABLE faq_faq ADD CONSTRAINT "Odd % one" UNIQUE (id, question)'
        index = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'faq_faq'::regclass AND indisreplident"
        run("shop", unique)
        self.addCleanup(run, "shop", 'ALTER TABLE faq_faq DROP CONSTRAINT IF EXISTS "Odd % one"')
        for chosen, wanted in [
            ('USING INDEX "Odd % one"', ("i", [('"Odd % one"',)])),
            ("NOTHING", ("n", [])),
            ("DEFAULT", ("d", [])),
            ("FULL", ("f", [])),
        ]:
            with self.subTest(chosen=chosen):
                run("shop", f"ALTER TABLE faq_faq REPLICA IDENTITY {chosen}")
                self.publish("on")
                self.assertEqual(self.state()[0], "f")
                self.publish("on")
                said = self.publish("off")
                self.assertEqual((self.state()[0], run("shop", index)), wanted)
                self.assertEqual("is left" in said, chosen == "FULL", said)
        # An index that has gone meanwhile cannot be given back: all columns stay, and that is said.
        run("shop", 'ALTER TABLE faq_faq REPLICA IDENTITY USING INDEX "Odd % one"')
        self.publish("on")
        run("shop", 'ALTER TABLE faq_faq DROP CONSTRAINT "Odd % one"')
        self.assertIn("REPLICA IDENTITY FULL is left, since index Odd % one is there no more", self.publish("off"))
        self.assertEqual(self.state()[0], "f")
        # Whoever chose anew since is right.
        run("shop", "ALTER TABLE faq_faq REPLICA IDENTITY DEFAULT", unique)
        self.publish("on")
        run("shop", 'ALTER TABLE faq_faq REPLICA IDENTITY USING INDEX "Odd % one"')
        self.assertIn("is left, which may be somebody else's choice", self.publish("off"))
        self.assertEqual(self.state()[0], "i")
        run("shop", "ALTER TABLE faq_faq REPLICA IDENTITY DEFAULT")

    def test_a_table_of_the_same_name_in_another_schema_is_another(self) -> None:
        self.begin_without_publication()
        world.postgres.execute("shop", "CREATE SCHEMA archive", "CREATE TABLE archive.faq_faq (id int PRIMARY KEY)")
        self.addCleanup(world.postgres.execute, "shop", "DROP SCHEMA archive CASCADE")
        world.postgres.execute("shop", "CREATE PUBLICATION p FOR TABLE archive.faq_faq", "ALTER PUBLICATION p OWNER TO app")
        self.publish("on", "p")
        self.assertEqual(self.state()[2], {"p": 2})
        self.publish("off", "p")
        left = "SELECT prrelid::regclass::text FROM pg_publication_rel"
        self.assertEqual(world.postgres.execute("shop", left), [("archive.faq_faq",)])
        world.postgres.execute("shop", "DROP PUBLICATION p")

    def test_what_somebody_else_made_is_left(self) -> None:
        self.begin_without_publication()
        for made in ("FOR TABLE faq_faq", "FOR ALL TABLES", "FOR TABLES IN SCHEMA public"):
            with self.subTest(made=made):
                world.postgres.execute(
                    "shop", f"CREATE PUBLICATION p {made}", "GRANT SELECT ON faq_faq TO vecsync",
                    "ALTER TABLE faq_faq REPLICA IDENTITY FULL",
                )  # fmt: skip
                before = self.state()
                self.publish("on", "p")
                self.assertEqual(self.state(), before)
                said = self.publish("off", "p")
                self.assertEqual(self.state(), before)
                for wanted in ("publication p is left", "SELECT of vecsync is left", "REPLICA IDENTITY FULL is left"):
                    self.assertIn(wanted, said)
                world.postgres.execute(
                    "shop", "DROP PUBLICATION p", "REVOKE SELECT ON faq_faq FROM vecsync",
                    "ALTER TABLE faq_faq REPLICA IDENTITY DEFAULT",
                )  # fmt: skip

    def test_a_comment_of_somebody_elses_is_not_written_over(self) -> None:
        self.begin_without_publication()
        world.postgres.execute("shop", "CREATE PUBLICATION p", "COMMENT ON PUBLICATION p IS 'ours'", user="app")
        comment = "SELECT obj_description(oid, 'pg_publication') FROM pg_publication"
        self.publish("on", "p")
        self.assertEqual(self.state(), ("f", True, {"p": 1}))
        self.publish("off", "p")
        # It has the table by name, so that goes; the rest cannot be told to be its own.
        self.assertEqual(self.state(), ("f", True, {"p": 0}))
        self.assertEqual(world.postgres.execute("shop", comment), [("ours",)])
        world.postgres.execute(
            "shop",
            "DROP PUBLICATION p",
            "REVOKE SELECT ON faq_faq FROM vecsync",
            "ALTER TABLE faq_faq REPLICA IDENTITY DEFAULT",
        )

    def test_text_is_loaded_once(self) -> None:
        world.migrate()
        text = Path(os.environ["VECSYNC_TEST_FAQ"])
        lines = len({(one["question"], one["category"]) for one in map(json.loads, text.read_text().splitlines())})
        self.assertIn(f"{lines} FAQs loaded", world.manage("load_faqs", str(text)).stdout)
        self.assertIn("0 FAQs loaded", world.manage("load_faqs", str(text)).stdout)
        self.assertEqual(world.postgres.execute("shop", "SELECT count(*) FROM faq_faq"), [(lines,)])
        self.assertIn("cannot be read", world.manage("load_faqs", "/nowhere", code=1).stderr)

    def test_the_pipeline_file_is_the_models(self) -> None:
        made = world.manage("vecsync_pipeline", "faq.FAQ", "--exclude", "created_at").stdout
        without_comments = "\n".join(line for line in world.pipeline.read_text().splitlines() if not line.startswith("#"))
        self.assertEqual(without_comments, "\n".join(line for line in made.splitlines() if not line.startswith("#")))
        self.assertIn("ok: faq", world.vecsync.run("pipeline", "check", str(world.pipeline)).stdout)
        self.assertNotIn("vecsync.W", world.manage("check").stderr)
        wrong = world.folder / "wrong.toml"
        wrong.write_text(world.pipeline.read_text().replace("{{ question }}", "{{ questoin }}"))
        said = world.manage("check", environment={"FAQ_PIPELINE_FILE": str(wrong)}).stderr
        self.assertIn("document.title names questoin", said)


if __name__ == "__main__":
    unittest.main()
