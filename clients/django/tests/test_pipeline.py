"""Pipeline files from models, what a file names, and where the two disagree."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.test import SimpleTestCase, override_settings

from django_vecsync import pipeline
from tests.shop.models import FAQ, Article, Count, Note, Restaurant


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
        text = self.made("shop.Article", "--name", "press")
        for line in [
            'table = "press.article"',
            'title = "{{ head }}"',
            'text = "{{ teaser }}\\n\\n{{ body }}"',
            'payload = ["slug", "head", "teaser", "body", "section_id", "state"]',
            'filters = ["section_id", "state"]',
        ]:
            self.assertIn(line + "\n", text)
        self.assertNotIn("when", text)

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
            for model in (FAQ, Article, Note):
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
        made = pipeline.from_model(Article, pipeline.Wanted()).replace('"section_id", "state"]', '"section", "state"]')
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
