# shellcheck shell=bash
# Tells tests and benchmarks where the things are, and hides this shell's own settings from them. Sourced after places.sh.

for name in $(compgen -e | grep -E '^(VECSYNC_|KAFKA_|QDRANT_|RAG_|DATABASE_URL$)'); do
  case $name in
    VECSYNC_CACHE_DIR | QDRANT_TEST_URL) ;;
    *) unset "$name" ;;
  esac
done
export VECSYNC_TEST_MODEL_DIR=$MODEL_DIR
export VECSYNC_TEST_FAQ=$FAQ
export VECSYNC_TEST_PG_BIN=$PG_BIN
export VECSYNC_TEST_PG_USER=$PG_USER
for version in "${PG_OTHERS[@]}"; do
  export "VECSYNC_TEST_PG_BIN_${version%%.*}=$PG_CACHE/postgres-$version/bin"
done
export VECSYNC_TEST_KAFKA=$KAFKA
export VECSYNC_TEST_DEBEZIUM=$DEBEZIUM
export VECSYNC_TEST_SCHEMATHESIS=$SCHEMATHESIS
export VECSYNC_TEST_HELM=$HELM
export VECSYNC_TEST_PROMETHEUS=$CACHE/deb/prometheus/usr/bin/prometheus
VECSYNC_TEST_FAKETIME=$(echo "$CACHE"/deb/libfaketime/usr/lib/*/faketime/libfaketimeMT.so.1)
export VECSYNC_TEST_FAKETIME
export VECSYNC_TEST_COMPOSE=$CACHE/deb/docker-compose/usr/lib/python3/dist-packages/compose/config/compose_spec.json
export VECSYNC_TEST_BIN=${CARGO_TARGET_DIR:-$ROOT/target}/debug/vecsync
export VECSYNC_TEST_QDRANT=${CARGO_TARGET_DIR:-$ROOT/target}/test-server/qdrant-test-server
