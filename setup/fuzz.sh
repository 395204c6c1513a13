#!/usr/bin/env bash
# `make fuzz`: runs each fuzz target for so many seconds (the first argument, 60 if there is none), from the corpus that is
# committed. What is found lands in fuzz/found, what is learnt in fuzz/target.
set -euo pipefail
. "$(dirname "$0")/places.sh"
"$ROOT/setup/preflight.sh"
cd "$ROOT/fuzz"

TIME=${1:-60}
TARGET=x86_64-unknown-linux-gnu
TARGETS=${CARGO_TARGET_DIR:-$ROOT/fuzz/target}/fuzz
# Coverage as libFuzzer wants it. Without a sanitizer, which the decoders have no unsafe code for, the compiler that builds
# everything else does: no nightly is needed.
FLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"

# Not --locked: the lock file follows vecsync's own dependencies, which are pinned where they stand.
RUSTFLAGS=$FLAGS CARGO_TARGET_DIR=$TARGETS cargo build --target "$TARGET"
mkdir -p found
for name in stream pgoutput; do
  say "== $name: $TIME s"
  mkdir -p "$TARGETS/corpus/$name"
  "$TARGETS/$TARGET/debug/$name" "$TARGETS/corpus/$name" "corpus/$name" -max_total_time="$TIME" -max_len=4096 \
    -timeout=5 -rss_limit_mb=512 -print_final_stats=1 -verbosity=0 -artifact_prefix="found/$name-"
done
say "Nothing found."
