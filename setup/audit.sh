#!/usr/bin/env bash
# Checks the dependencies against the advisory database, which it downloads; deny.toml holds the known exceptions.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
setup/preflight.sh
setup/fetch.sh checks
"$DENY" check advisories
