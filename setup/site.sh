#!/usr/bin/env bash
# `make django`: beside `make run`, from another terminal: the help centre of examples/django-faq on port 8001, until Ctrl-C.
# Where DATABASE_URL is set it uses that database, makes Django's tables there, and makes no login.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"

setup/fetch.sh django
if [ -z "$(setting DATABASE_URL)" ]; then
  [ -s "$LOCAL/env" ] || die "make run is not running in this clone: start it in another terminal, or set DATABASE_URL"
  # shellcheck source=/dev/null # make run writes it
  . "$LOCAL/env"
  OWN=yes
else
  DATABASE_URL=$(setting DATABASE_URL)
  export DATABASE_URL
  OWN=""
fi
export DJANGO_DEBUG=true
export PYTHONPATH=$ROOT/clients/django:$DJANGO/django
export PYTHONDONTWRITEBYTECODE=1
cd examples/django-faq

# The sample table is there already.
python3 manage.py migrate --fake-initial --verbosity 0
if [ -n "$OWN" ]; then
  [ -s "$LOCAL/editor" ] || (umask 077 && od -An -N9 -tx1 /dev/urandom | tr -d ' \n' >"$LOCAL/editor")
  DJANGO_SUPERUSER_PASSWORD=$(cat "$LOCAL/editor")
  export DJANGO_SUPERUSER_PASSWORD
  python3 manage.py createsuperuser --noinput --username editor --email editor@localhost >/dev/null 2>&1 || true
  say "Editors write at http://127.0.0.1:8001/admin/ as editor, password $DJANGO_SUPERUSER_PASSWORD"
  unset DJANGO_SUPERUSER_PASSWORD
fi
exec python3 -m help_centre.serve 127.0.0.1:8001
