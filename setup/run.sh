#!/usr/bin/env bash
# `make run`: sets up, builds, starts a private PostgreSQL and vecsync, shows three searches, stays until Ctrl-C.
# Where DATABASE_URL is set it starts no PostgreSQL and writes nothing into that database itself.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"

mkdir -p "$LOCAL"
exec 9>"$LOCAL/run.lock"
flock -n 9 || die "make run is already running in this clone (pid $(cat "$LOCAL/run.pid" 2>/dev/null || echo unknown)); stop that one first"
echo $$ >"$LOCAL/run.pid"

setup/preflight.sh
setup/fetch.sh model postgres faq
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
VECSYNC=$TARGET/release/vecsync
if [ -x "$VECSYNC" ]; then
  say "Building vecsync (release); only what changed is compiled"
else
  say "Building vecsync (release); the first time takes about 5 minutes on 2 cores"
fi
cargo build --release --locked

VECSYNC_PID=""
OWN_POSTGRES=""

is_our_vecsync() { # by what it was started as, since a process id may have been given to another program
  [ -n "$1" ] && [ "$(tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" | head -n 1)" = "$VECSYNC" ]
}

stop_vecsync() { # stop_vecsync PID
  kill -TERM "$1" 2>/dev/null || true
  local waited=0
  while is_our_vecsync "$1" && [ "$(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null)" != Z ]; do
    if [ "$waited" -ge 300 ]; then
      say "vecsync (pid $1) did not stop within 30 s: killed"
      kill -KILL "$1" 2>/dev/null || true
      break
    fi
    sleep 0.1
    waited=$((waited + 1))
  done
}

stop_all() {
  trap '' INT TERM HUP
  if [ -n "$VECSYNC_PID" ]; then
    stop_vecsync "$VECSYNC_PID"
    VECSYNC_PID=""
  fi
  if [ -n "$OWN_POSTGRES" ]; then
    setup/postgres.sh stop || true
    OWN_POSTGRES=""
  fi
  rm -f "$LOCAL/vecsync.pid" "$LOCAL/run.pid" "$LOCAL/env"
}

on_signal() {
  say ""
  say "Stopping"
  stop_all
  say "Stopped"
  exit 0
}

left_behind=$(cat "$LOCAL/vecsync.pid" 2>/dev/null || true)
if is_our_vecsync "$left_behind"; then
  say "Stopping the vecsync that an earlier run left behind (pid $left_behind)"
  stop_vecsync "$left_behind"
fi

trap on_signal INT TERM HUP
trap stop_all EXIT

if [ -z "$(setting DATABASE_URL)" ]; then
  OWN_POSTGRES=yes
  DATABASE_URL=$(setup/postgres.sh start)
  export DATABASE_URL
  # A data directory belongs to one database: the sample's stays apart from a real one's.
  [ -n "$(setting VECSYNC_DATA_DIR)" ] || export VECSYNC_DATA_DIR=$LOCAL/data
else
  say "Using the database of DATABASE_URL; the sample table is not made there"
fi

if [ -z "$(setting VECSYNC_LISTEN)" ]; then
  port=$(free_port 8000)
  [ "$port" = 8000 ] || say "Port 8000 is taken; vecsync listens on $port"
  export VECSYNC_LISTEN=127.0.0.1:$port
fi
listen=$(setting VECSYNC_LISTEN)
scheme=http
[ -z "$(setting VECSYNC_TLS_CERT)" ] || scheme=https
# An address that means all interfaces is reached on this machine through loopback.
URL=$scheme://$(printf '%s' "$listen" | sed -E 's/^(0\.0\.0\.0|\[::\])?:/127.0.0.1:/')

# For the other commands of vecsync, from another terminal.
if [ -n "$OWN_POSTGRES" ]; then
  (umask 077 && printf 'export %s=%q\n' DATABASE_URL "$DATABASE_URL" VECSYNC_LISTEN "$listen" \
    VECSYNC_DATA_DIR "$(setting VECSYNC_DATA_DIR)" >"$LOCAL/env")
fi

# A session of its own: Ctrl-C in the terminal reaches this script alone, which then stops vecsync once.
setsid "$VECSYNC" run 9>&- &
VECSYNC_PID=$!
echo "$VECSYNC_PID" >"$LOCAL/vecsync.pid"

ended() { # vecsync is gone by itself
  local status=0
  wait "$VECSYNC_PID" || status=$?
  VECSYNC_PID=""
  case $status in
    137) say "vecsync was killed (SIGKILL). Your rows are in PostgreSQL still: setup/postgres.sh start lets psql at them," \
      "make run takes everything up again." ;;
    *) say "vecsync ended by itself with status $status; its last lines above say why" ;;
  esac
  stop_all
  exit "$status"
}

ask() { curl -sk --max-time 2 "$URL$1" 2>/dev/null; }

until ask /health/ | grep -E '"status": *"healthy"' >/dev/null; do
  kill -0 "$VECSYNC_PID" 2>/dev/null || ended
  sleep 0.2
done

indexed() { ask /metrics | awk '/^vecsync_store_points\{.*store="local"/ { n += $NF } END { print n + 0 }'; }

if [ -n "$OWN_POSTGRES" ]; then
  questions=("which version of debian should I install"
    "why does my list change when I modify a copy"
    "how to make python faster")
else
  questions=("how do I change my password" "how can I reach a person for help" "what does it cost")
fi
if [ -n "$OWN_POSTGRES" ] || [ "$(indexed)" -gt 0 ]; then
  for question in "${questions[@]}"; do
    say ""
    say "\$ vecsync search \"$question\" --limit 1"
    VECSYNC_URL=$URL "$VECSYNC" search "$question" --limit 1 9>&- || say "(this search failed; vecsync goes on)"
  done
else
  say "The index is empty: no row of the table is to be found yet"
fi

say ""
say "Ready: $URL/   (a page to search, with the changes as they come)"
say "  curl '$URL/search?q=${questions[0]// /+}'"
if [ -n "$OWN_POSTGRES" ]; then
  say "  psql '$DATABASE_URL' -c \"UPDATE faq_faq SET answer = 'Ask at the front desk.' WHERE id = 1\""
  command -v psql >/dev/null || say "  (psql is in the Debian package postgresql-client)"
  say "  . .local/env && $VECSYNC status        (any vecsync command, from another terminal)"
fi
say "Ctrl-C stops it."

wait "$VECSYNC_PID" || true
kill -0 "$VECSYNC_PID" 2>/dev/null || ended
