"""``vecsync init`` by a running vecsync."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django_vecsync.control import RemoteCommand, misused

NAMES = ("health_check_only", "validate", "stats", "recreate", "migrate")


class Command(RemoteCommand):
    help = "Makes the collection in Qdrant behind its alias where it is not there, and says how it is."
    remote = "init"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--health-check-only", action="store_true", help="Only say whether Qdrant answers; status 3 if not")
        parser.add_argument(
            "--validate", action="store_true", help="Compare what is there with what would be made; status 3 where it differs"
        )
        parser.add_argument("--stats", action="store_true", help="Print the rows and points of each generation")
        parser.add_argument("--recreate", action="store_true", help="Fill a new generation from the log, then swap")
        parser.add_argument("--migrate", action="store_true", help="Take over a plain collection, or load a local store")
        parser.add_argument(
            "--local-store-path", metavar="PATH", help="What to load, in the data directory of the vecsync that is asked"
        )

    def flags(self, options: Mapping[str, Any]) -> dict[str, Any]:
        flags: dict[str, Any] = {name: True for name in NAMES if options[name]}
        names = flags.keys()
        is_path = options["local_store_path"] is not None
        misused(
            "--migrate: wanted without other flags than --local-store-path" if "migrate" in names and len(names) > 1 else None,
            "--local-store-path: wanted with --migrate" if is_path and "migrate" not in names else None,
            "--health-check-only: wanted without --validate, --stats and --recreate"
            if "health_check_only" in names and len(names) > 1
            else None,
            "--validate: wanted without --recreate" if names >= {"validate", "recreate"} else None,
        )
        if is_path:
            flags["local_store_path"] = options["local_store_path"]
        return flags
