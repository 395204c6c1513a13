# shellcheck shell=bash
# Names the places and the few words that the set-up scripts share. Sourced; does nothing by itself.
# shellcheck disable=SC2034 # the names are used by the scripts that source this

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
LOCAL=$ROOT/.local
CACHE=${VECSYNC_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vecsync}
MODEL_DIR=$ROOT/models/all-MiniLM-L6-v2
FAQ=$LOCAL/faq.jsonl
PINS=$ROOT/setup/pins.txt
KAFKA=$CACHE/kafka-4.1.0
DEBEZIUM=$CACHE/debezium-3.5.0.Final
SCHEMATHESIS=$CACHE/schemathesis-4.32.5
DJANGO=$CACHE/django-$(cat "$ROOT"/setup/django*.txt | sha256sum | cut -c1-12)
HELM=$CACHE/helm-3.20.2
KUBERNETES=(1.27 1.34) # whose schemas the chart is held against: the oldest that it is for, and a new one
PG_OTHERS=(14.20.0 17.7.0 18.1.0) # the versions that tests run on besides
RUST=1.95.0
CARGO_DENY=0.20.2
DENY=$CACHE/cargo-deny-$CARGO_DENY/bin/cargo-deny

# Servers never run as root. Root has Debian's PostgreSQL and its user, who cannot enter root's own folders; anyone else
# has the embedded binaries.
if [ "$(id -u)" = 0 ]; then
  PG_BIN=/usr/lib/postgresql/15/bin
  PG_USER=postgres
  PG_CACHE=${VECSYNC_CACHE_DIR:-/var/cache/vecsync}
else
  PG_BIN=$CACHE/postgres-15.15.0/bin
  PG_USER=$(id -un)
  PG_CACHE=$CACHE
fi

# A shell that has not read its profile since rustup came does not know cargo.
command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH

say() { printf '%s\n' "$*"; }

die() {
  printf 'vecsync: %s\n' "$*" >&2
  exit 1
}

# Runs a command as the user that owns the private PostgreSQL, from a folder which that user can enter.
as_pg_user() (
  cd /
  export LC_ALL=C.UTF-8
  if [ "$(id -u)" = 0 ]; then
    exec setpriv --reuid "$PG_USER" --regid "$PG_USER" --init-groups env HOME=/ "$@"
  fi
  exec "$@"
)

# setting NAME: its value in the environment, else in .env, else nothing.
setting() {
  if [ -n "${!1:-}" ]; then
    printf '%s' "${!1}"
  elif [ -f "$ROOT/.env" ]; then
    sed -n -E "s/^[[:space:]]*(export[[:space:]]+)?$1=//p" "$ROOT/.env" | tail -n 1 |
      sed -E "s/[[:space:]]+$//; s/^\"(.*)\"$/\1/; s/^'(.*)'$/\1/" | tr -d '\n'
  fi
}

# free_port FROM: the first port from FROM on that nothing listens on.
free_port() {
  python3 - "$1" <<'PYTHON'
import socket, sys
for port in range(int(sys.argv[1]), 65536):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
    print(port)
    break
PYTHON
}
