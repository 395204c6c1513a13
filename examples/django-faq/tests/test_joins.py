"""Documents of a model with relations: published by a migration, described by a file that was made from the model, followed."""

from __future__ import annotations

import unittest
from typing import Any

from tests.live import World, wait_for

world: World
SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.desk.settings"}
TABLES = ("desk_entry", "desk_category", "desk_tag", "desk_entry_tags")


def setUpModule() -> None:
    global world
    world = World()
    manage("migrate", "--verbosity", "0")


def tearDownModule() -> None:
    from django.db import connections

    connections.close_all()
    world.close()


def manage(*words: str, code: int = 0) -> str:
    ended = world.manage(*words, code=code, environment=SETTINGS)
    return ended.stdout + ended.stderr


def identities() -> dict[str, str]:
    """What an old row of each table tells: d, its key; i, an index; f, all; and whether vecsync may read it."""
    rows = world.postgres.execute(
        "shop",
        "SELECT relname, relreplident::text || has_table_privilege('vecsync', oid, 'SELECT')::text FROM pg_class "
        f"WHERE relname IN {TABLES}",
    )
    return dict(rows)


def published() -> set[str]:
    rows = world.postgres.execute("shop", "SELECT tablename FROM pg_publication_tables WHERE pubname = 'vecsync_entry'")
    return {row[0] for row in rows}


class Joins(unittest.TestCase):
    def test_1_the_tables_are_published_and_back(self) -> None:
        manage("makemigrations", "--check", "--dry-run", "desk")
        made = dict.fromkeys(TABLES, "dtrue") | {"desk_entry_tags": "itrue"}
        self.assertEqual((identities(), published()), (made, set(TABLES)))
        manage("migrate", "desk", "0001", "--verbosity", "0")
        self.assertEqual((identities(), published()), (dict.fromkeys(TABLES, "dfalse"), set()))
        self.assertEqual(world.postgres.execute("shop", "SELECT 1 FROM pg_publication WHERE pubname = 'vecsync_entry'"), [])
        # Without its unique index a link tells what it linked only with all columns; what somebody chose is given back.
        index = "SELECT conname FROM pg_constraint WHERE conrelid = 'desk_entry_tags'::regclass AND contype = 'u'"
        name = world.postgres.execute("shop", index)[0][0]
        world.postgres.execute(
            "shop",
            f"ALTER TABLE desk_entry_tags DROP CONSTRAINT {name}",
            "ALTER TABLE desk_entry_tags REPLICA IDENTITY NOTHING",
            "CREATE PUBLICATION vecsync_entry FOR TABLE desk_tag",
            "ALTER PUBLICATION vecsync_entry OWNER TO app",
        )
        manage("migrate", "desk", "--verbosity", "0")
        self.assertEqual((identities()["desk_entry_tags"], published()), ("ftrue", set(TABLES)))
        manage("migrate", "desk", "0001", "--verbosity", "0")
        self.assertEqual((identities()["desk_entry_tags"], published()), ("nfalse", {"desk_tag"}))
        world.postgres.execute(
            "shop",
            "DROP PUBLICATION vecsync_entry",
            "ALTER TABLE desk_entry_tags REPLICA IDENTITY DEFAULT",
            f"ALTER TABLE desk_entry_tags ADD CONSTRAINT {name} UNIQUE (entry_id, tag_id)",
        )
        manage("migrate", "desk", "--verbosity", "0")
        said = manage("sqlmigrate", "desk", "0002")
        for wanted in ('FOR TABLE "desk_entry", "desk_category", "desk_entry_tags", "desk_tag"', "USING INDEX"):
            self.assertIn(wanted, said)

    def test_2_the_file_is_good_and_what_it_says_is_followed(self) -> None:
        self.assertIn("written", manage("vecsync_pipeline", "desk.Entry", "--output", str(world.pipeline), "--force"))
        checked = world.vecsync.run("pipeline", "check", str(world.pipeline))
        self.assertEqual((checked.returncode, checked.stderr), (0, ""), checked.stdout)
        self.assertIn("ok: entry from public.desk_entry", checked.stdout)
        self.assertNotIn("vecsync.W", manage("check"))
        world.vecsync.start_ready()
        world.connect(SETTINGS["DJANGO_SETTINGS_MODULE"])
        from django_vecsync import VectorStoreFactory

        from tests.desk.models import Category, Entry, Tag

        store = VectorStoreFactory.create_production_store()

        def expect(pk: int, category: str | None, tags: list[str]) -> None:
            def look() -> Any:
                payloads = {hit.id: hit.payload for hit in store.search("parcel", limit=50)}
                seen = payloads.get(pk, {})
                assert (seen.get("category"), seen.get("tags")) == (category, tags), f"{payloads}"
                return seen

            payload = wait_for(f"{category}, {tags} of {pk}", look)
            self.assertEqual(list(payload), ["id", "question", "answer", "category", "is_active", "tags"])

        post, shop = (Category.objects.create(name=name) for name in ("Post", "Shop"))
        fast, slow = (Tag.objects.create(name=name) for name in ("fast", "slow"))
        first = Entry.objects.create(question="Where is my parcel?", answer="The courier knows.", category=post)
        other = Entry.objects.create(question="What of the parcel?", answer="Ask the courier.", category=post)
        first.tags.add(slow, fast)
        expect(first.pk, "Post", ["fast", "slow"])
        expect(other.pk, "Post", [])
        # One row of another table, every document that has it.
        Category.objects.filter(pk=post.pk).update(name="Mail")
        expect(first.pk, "Mail", ["fast", "slow"])
        expect(other.pk, "Mail", [])
        Tag.objects.filter(pk=slow.pk).update(name="late")
        expect(first.pk, "Mail", ["fast", "late"])
        # Links alone.
        other.tags.set([fast])
        first.tags.remove(fast)
        expect(first.pk, "Mail", ["late"])
        expect(other.pk, "Mail", ["fast"])
        first.tags.clear()
        expect(first.pk, "Mail", [])
        other.category = shop
        other.save()
        expect(other.pk, "Shop", ["fast"])
        # What is deleted takes its links with it, or is let go of.
        fast.delete()
        expect(other.pk, "Shop", [])
        shop.delete()
        expect(other.pk, None, [])
        found = store.search("parcel", filters={"category": "Mail"})
        self.assertEqual([hit.id for hit in found], [first.pk])
        first.tags.add(slow)
        found = wait_for("a row by its tag", lambda: [hit.id for hit in store.search("parcel", filters={"tags": "late"})])
        self.assertEqual(found, [first.pk])
        verified = world.vecsync.run("verify")
        self.assertEqual(verified.returncode, 0, verified.stdout + verified.stderr)


if __name__ == "__main__":
    unittest.main()
