"""What the three scripts share: a line for each thing that was looked at, and the exit status of all of them.

0: all is well. 1: it could not be looked at. 2: settings or arguments are wrong. 3: something is not as it should be.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

DONE, FAILED, MISUSED, UNHEALTHY = 0, 1, 2, 3


class NotSo(Exception):
    """Something is not as it should be."""


class Skipped(Exception):
    """There is nothing to look at, and that is well."""


class Report:
    """Prints as it goes."""

    def __init__(self) -> None:
        self.wrong = 0

    def look(self, name: str, what: Callable[[], str]) -> bool:
        """Looks at one thing; whatever goes wrong with it is its own line."""
        began = time.monotonic()
        try:
            mark, said = "ok", what()
        except Skipped as reason:
            mark, said = "skipped", str(reason)
        except NotSo as reason:
            mark, said = "failed", str(reason)
        except Exception as error:
            mark, said = "failed", f"{type(error).__name__}: {error}"
        self.wrong += mark == "failed"
        line = " ".join(said.split())
        print(f"{mark:<8} {name:<22} {line} ({(time.monotonic() - began) * 1000:.0f} ms)", flush=True)
        return mark != "failed"

    def end(self) -> int:
        if self.wrong:
            many = "1 thing is" if self.wrong == 1 else f"{self.wrong} things are"
            print(f"\n{many} not as it should be.", file=sys.stderr)
            return UNHEALTHY
        print("\nAll is well.")
        return DONE


def number(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    """An argument that is a number in these bounds; another one ends the script with status 2."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: wanted a number from {least:g} to {most:g}")
        return value

    return parse


def address(text: str) -> str:
    """An argument that is http://host:port or https://host:port."""
    try:
        url = urlsplit(text)
        fits = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
        (url.hostname or "").encode("idna")
        fits = fits and text.isascii() and text.isprintable() and " " not in text and not (url.query or url.fragment)
    except ValueError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"{text}: wanted http://host:port or https://host:port")
    return text.rstrip("/")


def set_up() -> None:
    """Django with the settings of this site; ends with status 2 where they are wrong."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "help_centre.settings")
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django_vecsync import conf

    try:
        django.setup()
        conf.load()
    except (ImproperlyConfigured, OSError) as error:
        print(f"settings: {error}", file=sys.stderr)
        sys.exit(MISUSED)
    # What it would warn of is in the report.
    logging.getLogger("faq.rag.components.vector_store").setLevel(logging.CRITICAL)


def wait_for(what: str, look: Callable[[], bool], patience: float) -> float:
    """How long it took, seconds."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > patience:
            raise NotSo(f"{what}: not within {patience:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - began
