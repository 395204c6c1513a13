"""``vecsync check`` by a running vecsync."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django_vecsync.control import RemoteCommand, misused


class Command(RemoteCommand):
    help = "Looks at source, log, model, Qdrant and query server; a line each, with what mends it. Status 3 if not well."
    remote = "check"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--skip-health", action="store_true", help="Leave out the query server")
        parser.add_argument(
            "--skip-operations", action="store_true", help="Leave out what does something: an embedding, a point, a search"
        )
        parser.add_argument(
            "--drill", type=int, metavar="SECONDS", help="Answer without Qdrant for so long, and look how searches fare"
        )
        parser.add_argument("--verbose", action="store_true", help="Say how long each took")

    def flags(self, options: Mapping[str, Any]) -> dict[str, Any]:
        flags: dict[str, Any] = {name: True for name in ("skip_health", "skip_operations", "verbose") if options[name]}
        if options["drill"] is not None:
            misused(
                None if 1 <= options["drill"] <= 3600 else f"--drill {options['drill']}: wanted 1 to 3600 seconds",
                "--drill: wanted without --skip-health and --skip-operations" if flags.keys() - {"verbose"} else None,
            )
            flags["drill"] = options["drill"]
        return flags
