#!/usr/bin/env bash
# `make pictures`: takes the pictures of the page in docs/ anew, in a real Chromium, from the FAQ text of `make run`.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
setup/setup.sh
. setup/test_env.sh
cargo test --locked --test live page::pictures -- --ignored --exact
