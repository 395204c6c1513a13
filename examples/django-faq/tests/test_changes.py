"""Every way in which Django and others write to the table, and what a search finds of it."""

from __future__ import annotations

import time
import unittest

from tests.live import World, wait_for

world: World


def setUpModule() -> None:
    global world
    world = World()
    world.migrate()
    world.vecsync.start_ready()
    world.connect()


def tearDownModule() -> None:
    from django.db import connections

    connections.close_all()
    world.close()


class Changes(unittest.TestCase):
    def setUp(self) -> None:
        from django_vecsync import VectorStoreFactory

        from faq.models import FAQ

        self.FAQ = FAQ
        self.store = VectorStoreFactory.create_production_store()
        FAQ.objects.all().delete()

    def settle(self) -> None:
        """Waits until everything that was committed so far is searchable, which is what the age of an answer says."""
        committed = time.time()

        def is_newer() -> bool:
            before = time.time()
            age_ms = self.store.search("anything").staleness_ms
            return age_ms is not None and before - age_ms / 1000 >= committed

        wait_for("answers from after this moment", is_newer)

    def found(self, question: str, category: str = "", limit: int = 20) -> dict[int, dict[str, object]]:
        results = self.store.search(question, limit=limit, filters={"category": category} if category else None)
        return {int(str(hit.id)): dict(hit.payload) for hit in results}

    def expect(self, question: str, keys: set[int], category: str = "", limit: int = 20) -> dict[int, dict[str, object]]:
        def look() -> dict[int, dict[str, object]] | None:
            found = self.found(question, category, limit)
            assert set(found) == keys, f"{sorted(found)}, wanted {sorted(keys)}"
            return found or {0: {}}

        return dict(wait_for(f"{keys} for {question!r}", look))

    def make(self, question: str, answer: str, category: str = "shop", **more: object):
        return self.FAQ.objects.create(question=question, answer=answer, category=category, **more)

    def test_save_and_delete(self) -> None:
        parcel = self.make("Where is my parcel?", "The courier sends you a link.")
        self.make("Can I pay later?", "By invoice, within a month.")
        self.assertEqual(next(iter(self.found_when_settled("lost shipment"))), parcel.pk)
        parcel.answer = "Ask at the front desk."
        parcel.save()
        self.settle()
        self.assertEqual(self.found("lost shipment")[parcel.pk]["answer"], "Ask at the front desk.")
        pk = parcel.pk
        parcel.delete()
        self.settle()
        self.assertNotIn(pk, self.found("lost shipment"))

    def found_when_settled(self, question: str) -> dict[int, dict[str, object]]:
        self.settle()
        return self.found(question, "shop")

    def test_save_of_some_fields(self) -> None:
        one = self.make("Where is my parcel?", "x" * 20_000 + " The courier knows.")
        one.category = "post"
        one.save(update_fields=["category"])
        self.settle()
        self.assertEqual(self.found("courier", "post")[one.pk]["answer"], one.answer)

    def test_bulk_create_and_bulk_update(self) -> None:
        made = self.FAQ.objects.bulk_create(
            [self.FAQ(question=f"Question {number}", answer=f"Answer {number}", category="bulk") for number in range(15)]
        )
        keys = {one.pk for one in made}
        self.expect("answer", keys, "bulk")
        for one in made[:5]:
            one.category = "moved"
        self.FAQ.objects.bulk_update(made[:5], ["category"])
        self.expect("answer", {one.pk for one in made[:5]}, "moved")
        self.expect("answer", {one.pk for one in made[5:]}, "bulk")

    def test_update_and_delete_of_a_queryset(self) -> None:
        keys = {self.make("How?", f"So {number}.", "old").pk for number in range(4)}
        self.FAQ.objects.filter(category="old").update(category="new")
        self.expect("so", keys, "new")
        self.FAQ.objects.filter(category="new").delete()
        self.expect("so", set(), "new")

    def test_what_is_not_published_is_not_found(self) -> None:
        one = self.make("Draft?", "A secret.", "draft", is_active=False)
        self.settle()
        self.assertEqual(self.found("secret", "draft"), {})
        self.FAQ.objects.filter(pk=one.pk).update(is_active=True)
        self.expect("secret", {one.pk}, "draft")
        self.FAQ.objects.filter(pk=one.pk).update(is_active=False)
        self.expect("secret", set(), "draft")

    def test_raw_sql_from_django_and_from_elsewhere(self) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO faq_faq (question, answer, category, is_active, created_at, updated_at) "
                "VALUES ('Raw?', 'As it is.', 'raw', true, now(), now()) RETURNING id"
            )
            key = cursor.fetchone()[0]
        self.expect("as it is", {key}, "raw")
        world.postgres.execute("shop", f"UPDATE faq_faq SET category = 'cooked' WHERE id = {key}", user="app")
        self.expect("as it is", {key}, "cooked")

    def test_what_was_rolled_back_never_was(self) -> None:
        from django.db import transaction

        kept = self.make("Kept?", "Yes.", "atomic")
        with self.assertRaises(RuntimeError), transaction.atomic():
            self.make("Rolled back?", "Never.", "atomic")
            self.FAQ.objects.filter(pk=kept.pk).update(answer="Never.")
            raise RuntimeError
        with transaction.atomic():
            inside = self.make("Inside?", "Yes, too.", "atomic")
            with self.assertRaises(RuntimeError), transaction.atomic():
                self.make("Savepoint?", "Never.", "atomic")
                raise RuntimeError
        self.settle()
        found = self.found("yes", "atomic")
        self.assertEqual(set(found), {kept.pk, inside.pk})
        self.assertEqual(found[kept.pk]["answer"], "Yes.")

    def test_the_admin_writes_like_everybody(self) -> None:
        from django.contrib.auth import get_user_model
        from django.test import Client

        user = get_user_model().objects.create_superuser("editor", password="for the tests")
        client = Client(headers={"host": "127.0.0.1"})
        client.force_login(user)
        form = {"question": "From the admin?", "answer": "Of course.", "category": "admin", "is_active": "on"}
        self.assertEqual(client.post("/admin/faq/faq/add/", form).status_code, 302)
        one = self.FAQ.objects.get(category="admin")
        self.expect("of course", {one.pk}, "admin")
        self.assertEqual(client.post(f"/admin/faq/faq/{one.pk}/change/", {**form, "category": "desk"}).status_code, 302)
        self.expect("of course", {one.pk}, "desk")
        chosen = {"action": "delete_selected", "_selected_action": [one.pk], "post": "yes"}
        self.assertEqual(client.post("/admin/faq/faq/", chosen).status_code, 302)
        self.expect("of course", set(), "desk")

    def test_migrations_while_rows_are_followed(self) -> None:
        from django.db import connection, migrations, models
        from django.db.migrations.executor import MigrationExecutor

        state = MigrationExecutor(connection).loader.project_state()

        def migrate(*operations: object) -> None:
            nonlocal state
            migration = migrations.Migration("trial", "faq")
            migration.operations = list(operations)
            with connection.schema_editor() as editor:
                state = migration.apply(state, editor)

        one = self.make("Before?", "It was there.", "schema")
        self.expect("it was there", {one.pk}, "schema")
        migrate(migrations.AddField("faq", "hint", models.CharField(max_length=50, default="none")))
        migrate(migrations.RenameField("faq", "hint", "remark"))
        with connection.cursor() as cursor:
            cursor.execute("UPDATE faq_faq SET remark = 'x', category = 'changed' WHERE id = %s", [one.pk])
        self.expect("it was there", {one.pk}, "changed")
        migrate(migrations.RemoveField("faq", "remark"))

        # A column that the pipeline names: what is there stays searchable, health names the column, and all goes on when it is back.
        migrate(migrations.RenameField("faq", "category", "topic"))
        with connection.cursor() as cursor:
            cursor.execute("UPDATE faq_faq SET topic = 'late' WHERE id = %s", [one.pk])
        wait_for("health to name the column", lambda: any("category" in error for error in self.store.health().errors))
        results = self.store.search("it was there", filters={"category": "changed"})
        self.assertEqual(([hit.id for hit in results], results.degraded), ([one.pk], True))
        migrate(migrations.RenameField("faq", "topic", "category"))
        self.expect("it was there", {one.pk}, "late")
        wait_for("health to be well again", lambda: self.store.health().is_healthy)


if __name__ == "__main__":
    unittest.main()
