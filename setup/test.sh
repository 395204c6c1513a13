#!/usr/bin/env bash
# `make test`: sets up, then runs every check in order and stops at the first that fails, naming it. Fixes nothing.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"

STEP=""
trap '[ -z "$STEP" ] || printf "\nFAILED: %s\n" "$STEP" >&2' EXIT

step() { # step NAME COMMAND…
  local from=$SECONDS
  STEP=$1
  shift
  say "== $STEP"
  "$@"
  say "   $STEP: $((SECONDS - from)) s"
  STEP=""
}

promtool() { "$CACHE/deb/prometheus/usr/bin/promtool" "$@"; }

alert_rules() {
  promtool check config --syntax-only dashboards/prometheus/prometheus.yml
  promtool check rules dashboards/alerts.yml
  promtool test rules dashboards/alerts_test.yml
  # Debian's is older than the image and knows an address alone, none in a file.
  sed 's|url_file: .*|url: http://127.0.0.1/|' deploy/alertmanager/alertmanager.yml |
    "$CACHE/deb/prometheus-alertmanager/usr/bin/amtool" check-config /dev/stdin
}

# A profile of its own, which is cheap to compile: Qdrant's engine is large. Lints and build share what they can.
qdrant_server() {
  cargo clippy --locked --package qdrant-test-server --profile test-server --all-targets -- -D warnings
  cargo build --locked --package qdrant-test-server --profile test-server
}

scripts() {
  "$CACHE/deb/shellcheck/usr/bin/shellcheck" -x -P setup setup/*.sh deploy/postgres/init.sh deploy/systemd/vecsync-ctl .ci/run
  python3 -c 'import sys
for name in sys.argv[1:]:
    compile(open(name, encoding="utf-8").read(), name, "exec")' setup/faq.py
}

step "set-up" setup/setup.sh
. setup/test_env.sh
step "format (cargo fmt --check)" cargo fmt --all --check
step "lints (cargo clippy)" cargo clippy --locked --all-targets -- -D warnings
step "Qdrant for the tests (cargo clippy, cargo build)" qdrant_server
step "tests (cargo test)" cargo test --locked -- --skip kills::
# By themselves: the one over Kafka keeps two cores busy with ten servers.
step "kills (cargo test)" cargo test --locked --test live -- --test-threads 1 kills::
step "Django (ruff, mypy, wheel, tests)" setup/django.sh
step "dependencies (cargo deny)" "$DENY" --log-level error check bans licenses sources
step "alert rules (promtool)" alert_rules
step "scripts (shellcheck, python)" scripts
say ""
say "All checks passed in $SECONDS s."
