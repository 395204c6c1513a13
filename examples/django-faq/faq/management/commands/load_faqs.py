"""Loads questions and answers from JSON lines: {"question", "answer", "category"}. What is there already stays as it is."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from faq.models import FAQ

FIELDS = ("question", "answer", "category")


class Command(BaseCommand):
    help = "Loads FAQs from a file of JSON lines; questions that are there already are left alone."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="the file; - is standard input")

    def handle(self, *_args: Any, **options: Any) -> None:
        path: Path = options["file"]
        try:
            lines = (sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{path}: cannot be read: {error}") from error
        there = set(FAQ.objects.values_list("question", "category"))
        new = []
        for number, line in enumerate(lines, 1):
            try:
                entry = {field: str(json.loads(line)[field]) for field in FIELDS}
            except (ValueError, KeyError, TypeError) as error:
                raise CommandError(f"{path}:{number}: wanted a JSON object with {', '.join(FIELDS)}: {error!r}") from error
            entry["question"], entry["category"] = entry["question"][:255], entry["category"][:100]
            if (entry["question"], entry["category"]) not in there:
                there.add((entry["question"], entry["category"]))
                new.append(FAQ(**entry))
        FAQ.objects.bulk_create(new, batch_size=500)
        self.stdout.write(f"{len(new)} FAQs loaded, {len(lines) - len(new)} were there already")
