# vecsync with its model and ONNX Runtime inside. Built from the repository's root: docker build -t vecsync .
# Versions of what is fetched stand in setup/pins.txt, of the compiler in setup/places.sh, of crates in Cargo.lock.
FROM debian:12.12-slim AS model
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates default-jre-headless maven python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY setup setup
# `--build-arg FP32=yes` leaves the model in 32 bits inside as well, 90 MB more, for VECSYNC_MODEL=fp32.
ARG FP32=no
RUN VECSYNC_CACHE_DIR=/cache setup/fetch.sh model \
    && rm models/all-MiniLM-L6-v2/.stamp \
    && if [ "$FP32" != yes ]; then rm models/all-MiniLM-L6-v2/model.onnx; fi

FROM rust:1.95.0-slim-bookworm AS program
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential pkg-config libssl-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY pipelines pipelines
# Cargo wants the targets that Cargo.toml names to be there, and builds none of them here.
COPY benches benches
COPY tests tests
RUN CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --bin vecsync

FROM debian:12.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /data --no-create-home --shell /usr/sbin/nologin vecsync \
    && install -d -o vecsync -g vecsync -m 0700 /data
COPY --from=model /src/models/all-MiniLM-L6-v2 /usr/local/share/vecsync/all-MiniLM-L6-v2
COPY --from=program /src/target/release/vecsync /usr/local/bin/vecsync
COPY pipelines/faq.toml /etc/vecsync/pipeline.toml
ENV VECSYNC_DATA_DIR=/data \
    VECSYNC_LISTEN=0.0.0.0:8000 \
    VECSYNC_LOG_FORMAT=json \
    VECSYNC_MODEL_DIR=/usr/local/share/vecsync/all-MiniLM-L6-v2 \
    VECSYNC_PIPELINE=/etc/vecsync/pipeline.toml
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=20s --start-period=60s --retries=3 CMD ["vecsync", "healthcheck"]
ENTRYPOINT ["vecsync"]
CMD ["run"]
