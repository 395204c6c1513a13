"""Pipeline files from models, what a file names, and where the two disagree."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.test import SimpleTestCase, override_settings

from django_vecsync import pipeline
from tests.shop.models import FAQ, Article, Count, Entry, Note, Restaurant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class FromModelTests(SimpleTestCase):
    def made(self, *words: str) -> str:
        out = io.StringIO()
        call_command("vecsync_pipeline", *words, stdout=out)
        return out.getvalue()

    def test_a_faq_is_understood_by_itself(self) -> None:
        text = self.made("shop.FAQ")
        for line in [
            'name = "faq"',
            'table = "public.shop_faq"',
            'publication = "vecsync_faq"',
            'title = "{{ question }}"',
            'text = "{{ answer }}"',
            'payload = ["id", "question", "answer", "category", "is_active", "updated_at"]',
            'when = "is_active"',
            'filters = ["category"]',
        ]:
            self.assertIn(line + "\n", text)

    def test_columns_are_meant_and_not_fields(self) -> None:
        text = self.made("shop.Article", "--name", "press", "--no-join")
        for line in [
            'table = "press.article"',
            'title = "{{ head }}"',
            'text = "{{ teaser }}\\n\\n{{ body }}"',
            'payload = ["slug", "head", "teaser", "body", "section_id", "state"]',
            'filters = ["section_id", "state"]',
        ]:
            self.assertIn(line + "\n", text)
        self.assertNotIn("when", text)
        self.assertNotIn("query", text)

    def test_relations_that_say_what_a_row_is_about_are_joined(self) -> None:
        made = self.made("shop.Entry")
        text = tomllib.loads(made)
        self.assertEqual(
            text["source"]["query"].split("\n"),
            [
                "  SELECT d.id, d.question, d.answer, r1.name AS category, r2.name AS kind, d.author_id, d.main_id, "
                "d.topic_id,",
                "         ARRAY(SELECT r6.title FROM public.shop_entry_tags t6 JOIN public.shop_tag r6 ON r6.id = t6.tag_id "
                "WHERE t6.entry_id = d.id ORDER BY 1) AS tags",
                "  FROM public.shop_entry d",
                "  LEFT JOIN public.shop_category r1 ON r1.id = d.category_id",
                "  LEFT JOIN public.shop_category r2 ON r2.id = d.kind_id",
                "  WHERE d.id = ANY($1)",
            ],
        )
        of_key = "SELECT d.id FROM public.shop_entry d WHERE d.{} = ANY($1)"
        self.assertEqual(
            text["source"]["watch"],
            [
                {
                    "table": "public.shop_category",
                    "affects": f"{of_key.format('category_id')} UNION {of_key.format('kind_id')}",
                },
                {
                    "table": "public.shop_tag",
                    "affects": "SELECT t.entry_id FROM public.shop_entry_tags t WHERE t.tag_id = ANY($1)",
                },
                {"table": "public.shop_entry_tags", "keys": ["entry_id"], "affects": of_key.format("id")},
            ],
        )
        payload = ["id", "question", "answer", "category", "kind", "author_id", "main_id", "topic_id", "tags"]
        self.assertEqual(text["document"]["payload"], payload)
        self.assertEqual(text["index"]["filters"], ["category", "kind", "author_id", "main_id", "topic_id", "tags"])
        self.assertIn('Publish("Entry", publication="vecsync_entry", related=["category", "kind", "tags"])', made)

    def test_what_is_joined_can_be_chosen(self) -> None:
        words = ["--no-join", "--join", "main", "--join", "related.answer", "--join", "author.name", "--filter", "main"]
        text = tomllib.loads(self.made("shop.Entry", *words, "--exclude", "kind", "--title", "author"))
        query = text["source"]["query"]
        self.assertIn("d.category_id, r4.title AS main, d.topic_id,\n         ARRAY(SELECT r7.answer FROM", query)
        self.assertIn("SELECT d.id, r3.name AS author, d.answer", query)
        self.assertIn("LEFT JOIN public.shop_tag r4 ON r4.slug = d.main_id", query)
        self.assertIn("t7.from_entry_id = d.id", query)
        of_main = "SELECT d.id FROM public.shop_entry d JOIN public.shop_tag r ON r.slug = d.main_id WHERE r.id = ANY($1)"
        self.assertEqual(
            [(watch["table"], watch.get("keys"), watch["affects"] == of_main) for watch in text["source"]["watch"]],
            [
                ("public.shop_person", None, False),
                ("public.shop_tag", None, True),
                ("public.shop_entry", None, False),
                ("public.shop_entry_related", ["from_entry_id"], False),
            ],
        )
        self.assertEqual(text["document"]["title"], "{{ author }}")
        self.assertEqual(text["document"]["payload"][3:6], ["category_id", "author", "main"])
        self.assertEqual(text["index"]["filters"], ["main"])
        excluded = tomllib.loads(self.made("shop.Entry", "--exclude", "tags", "--exclude", "category"))
        self.assertEqual([watch["table"] for watch in excluded["source"]["watch"]], ["public.shop_category"])
        self.assertEqual(excluded["document"]["payload"][3], "kind")
        self.assertIn('table = "press.article"', self.made("shop.Article"))
        # What a parent has can be joined like any other.
        self.assertIn("r1.name AS place_ptr", self.made("shop.Restaurant", "--join", "place_ptr"))

    def test_what_cannot_be_joined_is_said(self) -> None:
        for words, wanted in [
            (["shop.Entry", "--join", "colour"], "--join colour: shop.Entry has no such relation; it has author, category"),
            (["shop.Entry", "--join", "answer"], "no such relation"),
            (["shop.Entry", "--join", "category.title"], "shop.Category has id, name"),
            (["shop.Entry", "--join", "topic"], "--join topic: shop.Count has no name to show: say which with topic.FIELD"),
            (["shop.Entry", "--join", "tags", "--exclude", "tags"], "--exclude tags: --join asks for it"),
            (["shop.Note", "--join", "tags"], "it has none"),
            (["shop.Clash"], "shop.Clash has a column of this name"),
        ]:
            with self.subTest(words=words), self.assertRaisesMessage(CommandError, wanted) as raised:
                self.made(*words)
            self.assertEqual(raised.exception.returncode, 2)
        self.assertNotIn("query", self.made("shop.Clash", "--no-join"))

    def test_what_is_asked_for_is_done(self) -> None:
        words = ["--title", "category", "--text", "question", "--text", "answer", "--filter", "id", "--exclude", "updated_at"]
        text = self.made("shop.FAQ", *words)
        self.assertIn('title = "{{ category }}"\ntext = "{{ question }}\\n\\n{{ answer }}"\n', text)
        self.assertIn('filters = ["id"]\n', text)
        self.assertNotIn("updated_at", text)
        self.assertIn('text = "{{ name }}"', self.made("shop.Note"))

    def test_columns_of_a_parents_table_are_left_out_and_named(self) -> None:
        for model in ("shop.Restaurant", "shop.Eatery"):
            text = self.made(model)
            self.assertIn('payload = ["place_ptr_id", "menu", "is_active"]', text)
            self.assertIn('table = "public.shop_restaurant"', text)
            self.assertIn('text = "{{ menu }}"', text)
            self.assertIn("# Left out, being in another table: id of shop.Place, name of shop.Place", text)
        for words in (["shop.Bar"], ["shop.Bar", "--text", "note"], ["shop.Restaurant", "--filter", "name"]):
            with self.assertRaisesMessage(CommandError, "shop.Place; a query (source.query) joins them"):
                self.made(*words)

    def test_a_column_that_no_template_can_name_is_said(self) -> None:
        for words in ([], ["--text", "body"]):
            with self.assertRaisesMessage(CommandError, "'Body Text'") as raised:
                self.made("shop.Letter", *words)
            self.assertEqual(raised.exception.returncode, 2)
        text = self.made("shop.Letter", "--text", "note")
        self.assertIn('payload = ["id", "Body Text", "note"]', text)

    def test_what_cannot_be_done_is_said(self) -> None:
        for words, wanted in [
            (["shop.Count"], "no text"),
            (["shop.Nothing"], "wanted APP.MODEL"),
            (["nothing"], "wanted APP.MODEL"),
            (["shop.FAQ", "--title", "tittle"], "--title tittle"),
            (["shop.FAQ", "--name", "Größe"], "--name"),
            (["shop.FAQ", "--exclude", "category", "--filter", "category"], "not in the payload"),
        ]:
            with self.subTest(words=words), self.assertRaisesMessage(CommandError, wanted) as raised:
                self.made(*words)
            self.assertEqual(raised.exception.returncode, 2)

    def test_a_file_is_not_replaced_without_a_word(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "faq.toml"
            self.made("shop.FAQ", "--output", str(path))
            with self.assertRaisesMessage(CommandError, "--force"):
                self.made("shop.FAQ", "--output", str(path))
            self.made("shop.FAQ", "--output", str(path), "--force")
            for model in (FAQ, Article, Entry, Note):
                path.write_text(pipeline.from_model(model, pipeline.Wanted()))
                self.assertEqual(pipeline.disagreements(pipeline.read(path), model), [])
        self.assertEqual(Count._meta.label, "shop.Count")


class NamesTests(SimpleTestCase):
    def test_columns_are_told_from_everything_else(self) -> None:
        for template, wanted in [
            ("{{ question }}", ["question"]),
            ("{{ question | upper }} {{ a ~ ' b ' ~ c }}", ["question", "a", "c"]),
            ("{% if is_new and kind == \"x\" %}{{ title|default('none') }}{% endif %}", ["is_new", "kind", "title"]),
            ("{% for tag in tags %}{{ tag }}{{ loop.index }}{% endfor %}", ["tags"]),
            ("{% set x = a %}{{ x }} plain text", ["a"]),
            ("{{ meta.author }} {{ range(3) }} {{ b is defined }}", ["meta", "b"]),
            ("no column", []),
        ]:
            self.assertEqual(pipeline.template_names(template), wanted, template)


class CheckTests(SimpleTestCase):
    def checked(self, text: str | None) -> list[tuple[str, str, str | None]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "faq.toml"
            if text is not None:
                path.write_text(text)
            with override_settings(VECSYNC={"PIPELINE_FILE": path}):
                found = run_checks(tags=["vecsync"])
        return [(str(one.id), str(one.msg).replace(folder, ""), one.hint) for one in found]

    def test_a_file_of_the_model_is_well(self) -> None:
        self.assertEqual(self.checked(pipeline.from_model(FAQ, pipeline.Wanted())), [])
        with override_settings(VECSYNC={}):
            self.assertEqual(run_checks(tags=["vecsync"]), [])

    def test_what_the_model_has_not_is_named(self) -> None:
        made = pipeline.from_model(Article, pipeline.Wanted(no_join=True)).replace(
            '"section_id", "state"]', '"section", "state"]'
        )
        found = self.checked(made.replace("{{ head }}", "{{ headlin }}"))
        self.assertEqual([one[0] for one in found], ["vecsync.W003"] * 2)
        self.assertIn("document.title names headlin", found[0][1])
        self.assertIn("document.payload names section", found[1][1])
        self.assertEqual(found[1][2], "The column of section is section_id.")

    def test_files_that_cannot_be_used_are_named(self) -> None:
        faq = pipeline.from_model(FAQ, pipeline.Wanted())
        for text, wanted in [
            (None, "W001"),
            ("name = ", "W001"),
            ("[document]", "W001"),
            ("source = 5\ndocument = 6", "W001"),
            (faq.replace('payload = ["id", ', "payload = [1, [2], "), "W001"),
            (faq.replace('payload = ["id", ', 'payload = "id" # '), "W001"),
            (faq.replace('filters = ["category"]', "filters = [[1]]"), "W001"),
            (faq.replace('when = "is_active"', "when = true"), "W001"),
            (faq.replace('table = "public.shop_faq"', "table = 5"), "W001"),
            ("x = " + "[" * 100_000, "W001"),
            (faq.replace("shop_faq", "shop_fact"), "W002"),
            (faq.replace('filters = ["category"]', 'filters = ["colour"]'), "W004"),
            (faq.replace('when = "is_active"', 'when = "is_activ"'), "W003"),
        ]:
            self.assertEqual([one[0] for one in self.checked(text)], [f"vecsync.{wanted}"], text)

    def test_a_column_of_a_parent_is_not_the_childs(self) -> None:
        made = pipeline.from_model(Restaurant, pipeline.Wanted()).replace("{{ menu }}", "{{ note }}")
        found = self.checked(made)
        self.assertEqual([one[0] for one in found], ["vecsync.W003"])
        self.assertIn("shop.Place", str(found[0][2]))

    def test_a_query_says_what_the_columns_are(self) -> None:
        faq = pipeline.from_model(FAQ, pipeline.Wanted()).replace("[document]", 'query = "SELECT 1"\n[document]')
        self.assertEqual(self.checked(faq.replace("{{ answer }}", "{{ tags }}")), [])

    def test_wrong_settings_are_errors(self) -> None:
        with override_settings(VECSYNC={"TIMEOUT": -1}):
            self.assertEqual([one.id for one in run_checks(tags=["vecsync"])], ["vecsync.E001"])
