#!/usr/bin/env bash
# `make soak`: embeds rows of mixed lengths for so many seconds (the first argument, 3600 if there is none) with a model (the
# second, int8 if there is none), and fails where the memory of vecsync grows meanwhile.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
setup/preflight.sh
setup/fetch.sh model postgres faq
. setup/test_env.sh
exec cargo bench --locked --bench vecsync -- soak "${1:-3600}" --model "${2:-int8}" --no-docs
