#!/usr/bin/env bash
# Sets an empty server up for vecsync and the site: the sample table, the roles, the publication. Run once by the image of PostgreSQL, by its
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
\getenv password APP_PASSWORD
CREATE ROLE app LOGIN;
ALTER ROLE app PASSWORD :'password';
-- The site's migrations change the table and make others beside it.
GRANT CREATE ON SCHEMA public TO app;
ALTER TABLE public.faq_faq OWNER TO app;
SQL
