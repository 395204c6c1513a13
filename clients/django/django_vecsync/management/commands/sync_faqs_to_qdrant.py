"""``vecsync sync`` by a running vecsync."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django_vecsync.control import RemoteCommand, misused


class Command(RemoteCommand):
    help = "Reads the whole table again and brings the index in step with it, while searches go on."
    remote = "sync"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--force", action="store_true", help="Embed texts again that did not change, too")
        parser.add_argument("--dry-run", action="store_true", help="Only count what it would change; write nothing")
        parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="Rows of a batch, 1 to 10000")
        parser.add_argument("--stats-only", action="store_true", help="Only count table, log and stores, and their lag")

    def flags(self, options: Mapping[str, Any]) -> dict[str, Any]:
        flags: dict[str, Any] = {name: True for name in ("force", "dry_run", "stats_only") if options[name]}
        misused(
            None if 1 <= options["batch_size"] <= 10_000 else f"--batch-size {options['batch_size']}: wanted 1 to 10000",
            "--stats-only: wanted without --force and --dry-run" if options["stats_only"] and len(flags) > 1 else None,
        )
        flags["batch_size"] = options["batch_size"]
        return flags
