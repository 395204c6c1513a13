"""Where settings come from, and what is said of wrong ones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings

from django_vecsync import conf


class ConfTests(SimpleTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("VECSYNC_", "RAG_"))}
        patched = mock.patch.dict(os.environ, clean, clear=True)
        patched.start()
        self.addCleanup(patched.stop)

    def load(self, env_file: str = "", environment: dict[str, str] | None = None, **given: object) -> conf.Config:
        (self.folder / ".env").write_text(env_file)
        with override_settings(BASE_DIR=self.folder, VECSYNC=given), mock.patch.dict(os.environ, environment or {}):
            return conf.load()

    def test_settings_win_over_the_environment_and_that_over_the_file(self) -> None:
        file = "VECSYNC_URL=http://file:1\nVECSYNC_API_KEYS=file-key,other\nRAG_VECTOR_STORE_TYPE=local\n"
        self.assertEqual(self.load().urls, ("http://127.0.0.1:8000",))
        config = self.load(file)
        self.assertEqual((config.urls, config.api_key, config.store_type), (("http://file:1",), "file-key", "local"))
        config = self.load(file, {"VECSYNC_URL": "http://env:2", "VECSYNC_API_KEYS": " , env-key"})
        self.assertEqual((config.urls, config.api_key), (("http://env:2",), "env-key"))
        config = self.load(file, {"VECSYNC_URL": "http://env:2"}, URL=["http://a:1/", "https://b"], API_KEY="own")
        self.assertEqual((config.urls, config.api_key), (("http://a:1", "https://b"), "own"))

    def test_the_address_follows_what_vecsync_listens_on(self) -> None:
        self.assertEqual(self.load("VECSYNC_LISTEN=0.0.0.0:9000").urls, ("http://127.0.0.1:9000",))
        self.assertEqual(self.load("VECSYNC_LISTEN=127.0.0.1:9000").urls, ("http://127.0.0.1:9000",))

    def test_keys_come_from_a_file_too(self) -> None:
        keys = self.folder / "keys"
        keys.write_text("# of the site\nkey-in-a-file\nother\n")
        self.assertEqual(self.load(f"VECSYNC_API_KEYS_FILE={keys}").api_key, "key-in-a-file")
        with self.assertRaisesMessage(ImproperlyConfigured, "VECSYNC_API_KEYS_FILE"):
            self.load("VECSYNC_API_KEYS_FILE=/nowhere")

    def test_of_several_keys_each_is_used_for_what_it_may(self) -> None:
        for given, wanted in [
            ("all", ("all", "all")),
            ("search:some", ("some", "some")),
            ("all,search:some,other", ("some", "all")),
            ("search:some,search:else,all", ("some", "all")),
        ]:
            config = self.load(f"VECSYNC_API_KEYS={given}")
            self.assertEqual((config.api_key, config.command_key), wanted, given)
        config = self.load("VECSYNC_API_KEYS=all", API_KEY="search:own")
        self.assertEqual((config.api_key, config.command_key), ("own", "own"))
        self.assertNotIn("own'", repr(config))

    def test_an_address_that_cannot_be_asked_is_named(self) -> None:
        for url in (
            "http://a..b",
            "http://" + "a" * 70,
            "http://a/b c",
            "http://a/\u00fc",
            5,
            [5],
            "http://[::1",
            "http://a:99999",
        ):
            with self.subTest(url=url), self.assertRaisesMessage(ImproperlyConfigured, "'URL'"):
                self.load(URL=url)
        with self.assertRaisesMessage(ImproperlyConfigured, "TIMEOUT"):
            self.load(TIMEOUT=float("nan"))
        with self.assertRaisesMessage(ImproperlyConfigured, "ENV_FILE"):
            self.load(ENV_FILE="a\0b")

    def test_every_problem_is_named_and_no_secret_shown(self) -> None:
        with self.assertRaises(ImproperlyConfigured) as raised:
            self.load(
                URL="ftp://canary", TIMEOUT=0, RETRIES="2", NOPE=1, STORE_TYPE="faiss", API_KEY="canary\nkey", PIPELINE="../x"
            )
        said = str(raised.exception)
        for name in ("'URL'", "'TIMEOUT'", "'RETRIES'", "'NOPE'", "faiss", "'API_KEY'", "'PIPELINE'"):
            self.assertIn(name, said)
        self.assertNotIn("canary", said)
        self.assertNotIn("secret", repr(self.load(API_KEY="secret-key")))
        with override_settings(VECSYNC=5), self.assertRaisesMessage(ImproperlyConfigured, "dictionary"):
            conf.load()

    def test_a_file_is_read_as_vecsync_reads_it(self) -> None:
        text = """
            # comment
            export A=1
            B = two words # comment
            C='a $A # "b"'
            D="x\\"y$A ${A}"
            E=$A-$NOBODY
            F=
            no line
        """
        wanted = {"A": "1", "B": "two words", "C": 'a $A # "b"', "D": 'x"y1 1', "E": "1-", "F": ""}
        self.assertEqual(conf.parse_env(text), wanted)
