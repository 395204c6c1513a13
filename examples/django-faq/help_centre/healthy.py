"""The container's health check: whether this site's process answers. Status 0 if it does, 1 if not. Asks nothing of vecsync."""

import sys
import urllib.request

#: As `help_centre.serve` listens in the container.
URL = "http://127.0.0.1:8001/health/live/"


def main(url: str = URL) -> int:
    try:
        with urllib.request.urlopen(url, timeout=4) as answer:  # noqa: S310 - of this file
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
