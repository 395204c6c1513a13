#!/usr/bin/env bash
# Brings everything that run, test and bench need onto this machine; builds no vecsync and starts nothing.
set -euo pipefail
cd "$(dirname "$0")"
./preflight.sh test
./fetch.sh model postgres postgres-others faq kafka debezium schemathesis django helm checks
