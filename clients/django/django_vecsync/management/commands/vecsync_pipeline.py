"""Writes a pipeline file from a model."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError

from django_vecsync import pipeline
from django_vecsync.control import FAILED, MISUSED


class Command(BaseCommand):
    help = "Writes vecsync's pipeline file for a model, e.g. faq.FAQ, to standard output or into a file."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own way to say so

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="APP.MODEL")
        parser.add_argument("--output", metavar="FILE", help="Write there; an existing file needs --force")
        parser.add_argument("--force", action="store_true", help="Replace an existing file")
        parser.add_argument("--name", help="Name of the pipeline; default: the model's")
        parser.add_argument("--title", metavar="FIELD", help="What stands in front of every part of the text")
        parser.add_argument("--text", metavar="FIELD", action="append", default=[], help="The text; may be given again")
        parser.add_argument("--when", metavar="FIELD", help="A boolean; rows where it is false are not found")
        parser.add_argument("--filter", metavar="FIELD", action="append", help="A search may filter by it; may be given again")
        parser.add_argument("--exclude", metavar="FIELD", action="append", default=[], help="Keep it out of the payload")
        parser.add_argument(
            "--join",
            metavar="FIELD[.FIELD]",
            action="append",
            default=[],
            help="A foreign key or many-to-many field whose other side's name (or that field) is part of the document",
        )
        parser.add_argument(
            "--no-join",
            action="store_true",
            help="Join nothing unasked; else relations are joined whose names say what a row is about, as category and tags",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            model = apps.get_model(options["model"])
        except (LookupError, ValueError) as error:
            raise CommandError(f"{options['model']}: wanted APP.MODEL: {error}", returncode=MISUSED) from error
        wanted = pipeline.Wanted(
            name=options["name"],
            title=options["title"],
            text=tuple(options["text"]),
            when=options["when"],
            filters=None if options["filter"] is None else tuple(options["filter"]),
            exclude=tuple(options["exclude"]),
            join=tuple(options["join"]),
            no_join=options["no_join"],
        )
        try:
            text = pipeline.from_model(model, wanted)
        except pipeline.PipelineError as error:
            raise CommandError(str(error), returncode=MISUSED) from error
        if options["output"] is None:
            self.stdout.write(text, ending="")
            return
        path = Path(options["output"])
        try:
            with path.open("w" if options["force"] else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise CommandError(f"{path}: is there already; --force replaces it", returncode=FAILED) from error
        except OSError as error:
            raise CommandError(f"{path}: cannot be written: {error.strerror}", returncode=FAILED) from error
        self.stdout.write(f"{path}: written; `vecsync pipeline check {path}` looks at all of it\n", ending="")
