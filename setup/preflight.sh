#!/usr/bin/env bash
# Says what this machine lacks, all at once, before anything is downloaded; as root installs Debian's part of it.
# usage: preflight.sh [test]     (test: what the tests need as well)
set -euo pipefail
. "$(dirname "$0")/places.sh"

FOR_TESTS=${1:-}

check_system() {
  local name version
  # shellcheck source=/dev/null # every Debian has it
  name=$(. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME:-${NAME:-}}") || true
  # shellcheck source=/dev/null
  version=$(. /etc/os-release 2>/dev/null && printf '%s %s' "${ID:-}" "${VERSION_ID:-}") || true
  if [ "$(uname -s) $(uname -m) $version" != "Linux x86_64 debian 12" ]; then
    die "set-up knows Debian 12 on Linux x86_64 only; this is ${name:-an unnamed system} on $(uname -s) $(uname -m).
On other systems install the tools by hand and run cargo; see README.md."
  fi
}

packages=() # Debian packages that are missing
missing=()  # the same for people, one line a piece

need() { # need PACKAGE "what for" COMMAND…: the package is missing unless its command succeeds
  local package=$1 why=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    packages+=("$package")
    missing+=("$(printf '%-26s %s' "$package" "$why")")
  fi
}

compiles() { printf 'int main(void){return 0;}' | cc -x c -o /dev/null -; }

list_debian_packages() {
  need build-essential "C compiler and make, for crates with C parts" eval 'compiles && make --version'
  need pkg-config "finds C libraries" command -v pkg-config
  need libssl-dev "TLS of the Kafka client" pkg-config --exists openssl
  need ca-certificates "certificates for the package clients" test -s /etc/ssl/certs/ca-certificates.crt
  need curl "asks a running vecsync for its health" command -v curl
  need python3 "reads the FAQ text" python3 --version
  need python3-pip "downloads ONNX Runtime" python3 -c "import pip"
  need default-jre-headless "Java, for Maven and the tests' Kafka and Debezium" command -v java
  need maven "downloads the model, Kafka and Debezium" command -v mvn
  if [ "$(id -u)" = 0 ]; then
    need postgresql-15 "the private database" "$PG_BIN/postgres" --version
  else
    need xz-utils "unpacks the embedded PostgreSQL" command -v xz
  fi
  if [ "$FOR_TESTS" = test ]; then
    if [ "$(id -u)" = 0 ]; then need xz-utils "unpacks other versions of PostgreSQL" command -v xz; fi
    need chromium "the browser that the page is tested in" command -v chromium
    need chromium-driver "drives it" command -v chromedriver
  fi
}

RUST_PARTS="--profile minimal --component rustfmt --component clippy"
rust_command="" # what installs the missing part of Rust, for people

check_rust() {
  if command -v rustup >/dev/null; then
    if ! rustup toolchain list 2>/dev/null | grep "^$RUST-" >/dev/null; then
      rust_command="rustup toolchain install $RUST $RUST_PARTS"
      missing+=("$(printf '%-26s %s' "Rust $RUST" "rustup is here, this toolchain is not")")
    fi
  elif ! rustc --version 2>/dev/null | grep -F "rustc $RUST " >/dev/null; then
    # shellcheck disable=SC2089 # printed, never run
    rust_command="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain $RUST $RUST_PARTS && . \"\$HOME/.cargo/env\""
    missing+=("$(printf '%-26s %s' "Rust $RUST" "compiler and cargo, by rustup")")
  fi
}

install_command() {
  local apt="" sudo="sudo "
  [ "$(id -u)" = 0 ] && sudo=""
  if [ ${#packages[@]} -gt 0 ]; then
    apt="${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends ${packages[*]}"
  fi
  printf '%s' "$apt${apt:+${rust_command:+ && }}$rust_command"
}

# Debian's PostgreSQL package makes and starts a cluster of its own; nobody asked for that one.
without_system_cluster() {
  local setting=/etc/postgresql-common/createcluster.d/vecsync.conf status=0
  install -d "$(dirname "$setting")"
  echo "create_main_cluster = false" >"$setting"
  "$@" || status=$?
  rm -f "$setting"
  return "$status"
}

quietly() { # runs a command and shows what it said only if it fails
  local said status=0
  said=$("$@" 2>&1 </dev/null) || status=$?
  [ "$status" = 0 ] || tail -n 20 <<<"$said" >&2
  return "$status"
}

install_missing() {
  if [ ${#packages[@]} -gt 0 ]; then
    say "Installing with apt: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update -qq || die "apt-get update failed: check the network and apt's sources"
    without_system_cluster quietly apt-get install -y -qq --no-install-recommends "${packages[@]}" ||
      die "apt-get could not install: ${packages[*]}"
  fi
  if [ -n "$rust_command" ]; then
    say "Installing Rust $RUST with rustup"
    # shellcheck disable=SC2086 # several words on purpose
    rustup toolchain install "$RUST" $RUST_PARTS || die "rustup could not install Rust $RUST"
  fi
}

check_system
list_debian_packages
check_rust
[ ${#missing[@]} -eq 0 ] && exit 0

say "Missing on this machine:"
printf '  %s\n' "${missing[@]}"
say "One command installs it all:"
say "  $(install_command)"

# Root may install packages, and rustup may add a toolchain; rustup itself is the owner's decision.
if ! command -v rustup >/dev/null && [ -n "$rust_command" ]; then
  die "run the command above, then start again"
elif [ "$(id -u)" != 0 ] && [ ${#packages[@]} -gt 0 ]; then
  die "run the command above, then start again"
fi
install_missing
packages=() missing=() rust_command=""
list_debian_packages
check_rust
[ ${#missing[@]} -eq 0 ] || die "still missing after the installation: ${missing[*]}"
