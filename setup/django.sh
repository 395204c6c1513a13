#!/usr/bin/env bash
# Checks clients/django and examples/django-faq: style, types, the wheel in a clean environment, tests on the oldest and the newest
# Django, and the site with real servers. Called by test.sh, which has set the environment and built what is started.
# usage: django.sh [MODULE…]     (only these tests of the site, e.g. tests.test_changes)
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
. setup/test_env.sh

CLIENT=$ROOT/clients/django
SITE=$ROOT/examples/django-faq
NEWEST=$DJANGO/django
# Before the newest on Python's path.
OLDEST=$DJANGO/django-oldest:$DJANGO/django
# For another Python, where there is one.
NEXT=$DJANGO/django-next
export PYTHONDONTWRITEBYTECODE=1
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

version() { PYTHONPATH=$1 "${2:-python3}" -c 'import django; print(django.__version__)'; }

quietly() { # quietly WHAT COMMAND…: shows what it said only if it fails
  local what=$1 from=$SECONDS said
  said=$(mktemp -p "$WORK")
  shift
  if ! "$@" >"$said" 2>&1 </dev/null; then
    cat "$said" >&2
    die "failed: $what"
  fi
  say "   $what: ok, $(sed -n -E 's/^(Ran [0-9]+ tests?) in.*/\1, /p' "$said" | tail -n 1)$((SECONDS - from)) s"
}

style() {
  local folder
  for folder in "$CLIENT" "$SITE"; do
    (cd "$folder" && "$NEWEST/bin/ruff" check --no-cache . && "$NEWEST/bin/ruff" format --no-cache --check .)
  done
}

types() { (cd "$CLIENT" && PYTHONPATH=$NEWEST:. python3 -m mypy --cache-dir "$WORK/mypy"); }

# As a user has it: a wheel, an environment with nothing else, from the outside of this clone.
wheel() {
  cp -r "$CLIENT" "$WORK/source"
  PYTHONPATH=$NEWEST python3 -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps --no-index \
    --wheel-dir "$WORK/wheel" "$WORK/source"
  python3 -m venv --without-pip "$WORK/clean"
  PYTHONPATH='' python3 -m pip --python "$WORK/clean/bin/python" install -q --disable-pip-version-check --no-index \
    --find-links "$DJANGO/wheels" "$WORK"/wheel/*.whl
  (cd "$WORK" && PYTHONPATH='' clean/bin/python - <<'PYTHON'
import pathlib, django, django_vecsync
from django.conf import settings
from django.core import management
assert "/clean/" in django_vecsync.__file__, django_vecsync.__file__
assert pathlib.Path(django_vecsync.__file__).with_name("py.typed").is_file()
settings.configure(INSTALLED_APPS=["django_vecsync"], ROOT_URLCONF="django_vecsync.urls", SECRET_KEY="x")
django.setup()
management.call_command("check")
commands = {name for name, app in management.get_commands().items() if app == "django_vecsync"}
assert commands == {"init_qdrant", "sync_faqs_to_qdrant", "test_qdrant", "vecsync_pipeline"}, commands
PYTHON
  )
}

# The first Python here that Django 6 runs on, in a shell's path or made by pyenv; none is fetched.
later_python() {
  local found
  for found in python3 python3.{15..12} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3; do
    if "$found" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      command -v "$found"
      return
    fi
  done
}

next_django() {
  local python
  python=$(later_python)
  if [ -z "$python" ]; then
    say "   package on Django $(sed -n 's/^django==\([^ ]*\).*/\1/p' setup/django-next.txt): left out, it needs a Python 3.12 or later, and there is none"
    return
  fi
  quietly "package on Django $(version "$NEXT" "$python"), $("$python" --version)" client "$NEXT" "$python"
}

client() { # client PATH [PYTHON]
  (cd "$CLIENT" && PYTHONPATH=$1:. "${2:-python3}" -W error::ResourceWarning -m django test --settings tests.settings)
}

site() { # site PATH MODULE…
  local path=$1
  shift
  (cd "$SITE" && PYTHONPATH=$CLIENT:$path python3 -m unittest "$@")
}

if [ $# -gt 0 ]; then
  site "$NEWEST" -v "$@"
  exit
fi
# Half of the time is waiting for servers: two lanes side by side. Each ends at what fails first in it.
code_lane() {
  quietly "style (ruff)" style
  quietly "types (mypy)" types
  quietly "wheel in a clean environment" wheel
  local path
  for path in "$OLDEST" "$NEWEST"; do
    quietly "package on Django $(version "$path")" client "$path"
    quietly "changes on Django $(version "$path")" site "$path" tests.test_changes
  done
  next_django
  quietly "migrations" site "$NEWEST" tests.test_migrations
  quietly "joins" site "$NEWEST" tests.test_joins
  quietly "browser" site "$NEWEST" tests.test_browser
}
server_lane() {
  quietly "commands" site "$NEWEST" tests.test_commands
  quietly "scripts" site "$NEWEST" tests.test_scripts
}
code_lane &
CODE=$!
server_lane &
SERVERS=$!
FAILED=""
wait "$CODE" || FAILED=yes
wait "$SERVERS" || FAILED=yes
[ -z "$FAILED" ] || die "a check of the Django side failed, see above"
say "Django: all checks passed"
