#!/usr/bin/env bash
# The private PostgreSQL of this clone: makes it once with the sample table, starts it, stops it. Touches no other server.
# usage: postgres.sh start | stop | remove     (start prints the DATABASE_URL; messages go to standard error)
set -euo pipefail
. "$(dirname "$0")/places.sh"
say() { printf '%s\n' "$*" >&2; }

# Root's servers run as another user, who may not be able to enter the folder that this clone is in.
home_of_cluster() {
  local home=$LOCAL/postgres
  if [ "$(id -u)" = 0 ] && ! as_pg_user test -x "$LOCAL"; then
    home=/var/lib/vecsync/$(basename "$ROOT")-$(printf '%s' "$ROOT" | sha256sum | cut -c1-8)
  fi
  printf '%s' "$home"
}

mkdir -p "$LOCAL"
PG_HOME=$(home_of_cluster)
DATA=$PG_HOME/data
LOG=$PG_HOME/server.log

# The server works in its data directory, so a process id that was given to another program since is told apart.
server_pid() {
  local pid
  pid=$(head -n 1 "$DATA/postmaster.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
  [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$(readlink -f "$DATA")" ] && printf '%s' "$pid"
}

# Single-user mode needs no client program, no password and no port. There an error is fatal and thus shown.
in_database() { # in_database FOLDER DATABASE: runs the SQL of standard input, statements separated by an empty line
  as_pg_user "$PG_BIN/postgres" --single -j -D "$1" -c exit_on_error=on -c log_min_messages=fatal "$2" >/dev/null
}

sample_rows() { # one INSERT of all questions; JSON on one line holds no empty line to end the statement early
  python3 - "$FAQ" <<'PYTHON'
import json, sys
with open(sys.argv[1], encoding="utf-8") as lines:
    rows = json.dumps([json.loads(line) for line in lines]).replace("'", "''")
print(f"""INSERT INTO public.faq_faq (question, answer, category)
SELECT entry->>'question', entry->>'answer', entry->>'category'
FROM json_array_elements('{rows}') WITH ORDINALITY AS listed (entry, place) ORDER BY place;
""")
PYTHON
}

# Made under another name and renamed when it holds its rows: the sample is loaded once, or not at all.
make_cluster() {
  local new=$PG_HOME/data.new password
  say "Making a private PostgreSQL with the sample table in $PG_HOME"
  rm -rf "$new"
  [ -d "$(dirname "$PG_HOME")" ] || install -d -m 755 "$(dirname "$PG_HOME")"
  install -d -m 700 -o "$PG_USER" "$PG_HOME"
  password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  (umask 077 && printf '%s' "$password" >"$PG_HOME/password")
  as_pg_user "$PG_BIN/initdb" -D "$new" -U postgres -E UTF8 --locale=C.UTF-8 \
    --auth-local=reject --auth-host=scram-sha-256 >"$LOCAL/initdb.log" 2>&1 ||
    die "initdb failed, see $LOCAL/initdb.log"
  as_pg_user tee -a "$new/postgresql.conf" >/dev/null <<'CONF'
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_level = logical
shared_buffers = 64MB
CONF
  {
    printf "CREATE ROLE vecsync LOGIN REPLICATION PASSWORD '%s';\n\n" "$password"
    printf "CREATE DATABASE vecsync OWNER vecsync;\n\n"
  } | in_database "$new" postgres || die "could not make the role and the database, see above"
  {
    # Single-user mode goes on counting objects where initdb stopped, and a table numbered below 16384 is one of the
    # system's to pgoutput, which sends nothing of it: the numbers up to there are used up first.
    printf "SELECT count(lo_unlink(lo_create(0))) FROM generate_series(1, 4096);\n\n"
    printf "SET ROLE vecsync;\n\n"
    cat "$ROOT/sql/faq_sample.sql"
    printf "\n\n"
    sample_rows
  } | in_database "$new" vecsync || die "could not load the sample table, see above"
  mv "$new" "$DATA"
}

start() {
  [ -d "$DATA" ] || make_cluster
  if server_pid >/dev/null; then
    say "Stopping the PostgreSQL that an earlier run left behind"
    stop
  fi
  as_pg_user rm -f "$DATA/postmaster.pid"
  local port
  port=$(free_port "$(cat "$PG_HOME/port" 2>/dev/null || echo 54320)")
  # A server that was killed leaves processes which go away by themselves, a moment later.
  start_server "$port" || { sleep 3 && start_server "$port"; } ||
    die "PostgreSQL did not start; its log: $LOG
$(tail -n 3 "$LOG")"
  printf '%s' "$port" >"$PG_HOME/port"
  say "PostgreSQL runs on 127.0.0.1:$port (log: $LOG)"
  printf 'postgresql://vecsync:%s@127.0.0.1:%s/vecsync?sslmode=disable\n' "$(cat "$PG_HOME/password")" "$port"
}

start_server() {
  as_pg_user "$PG_BIN/pg_ctl" start -w -t 60 -s -D "$DATA" -l "$LOG" -o "-p $1" </dev/null >/dev/null 2>&1 9>&-
}

stop() {
  server_pid >/dev/null || return 0
  as_pg_user "$PG_BIN/pg_ctl" stop -w -s -m fast -D "$DATA" ||
    die "PostgreSQL (pid $(server_pid)) did not stop; its log: $LOG"
}

remove() {
  stop
  rm -rf "$PG_HOME"
}

case ${1:-} in
  start | stop | remove) "$1" ;;
  *) die "usage: postgres.sh start | stop | remove" ;;
esac
