#!/usr/bin/env bash
# Removes what this clone built and set up, its private PostgreSQL included. The shared download cache stays.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
setup/postgres.sh remove
rm -rf .local models
cargo clean
