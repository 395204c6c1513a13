#!/usr/bin/env bash
# Sets an empty server up for vecsync: the sample table, the role, the publication. Run once by the image of PostgreSQL, by its
# superuser; for a server of your own run the files of sql/ as each of them says.
set -euo pipefail
run() { psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --dbname "${POSTGRES_DB:?}" "$@"; }
table=(-v schema=public -v table=faq_faq)

run -f "${SQL:-/sql}/faq_sample.sql"
run "${table[@]}" -v role=vecsync -f "${SQL:-/sql}/role.sql"
run "${table[@]}" -v publication=vecsync_faq -f "${SQL:-/sql}/publication.sql"
# From the environment, so that no list of processes shows it.
run <<'SQL'
\getenv password REPLICATION_PASSWORD
SET log_statement = none;
SET log_min_error_statement = panic;
ALTER ROLE vecsync PASSWORD :'password';
SQL
