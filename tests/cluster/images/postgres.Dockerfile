# A PostgreSQL for tests: as user 10001, on a read-only root file system, and without a password for anybody who reaches it.

ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE}
# No cluster is made now: `start` makes one. LLVM is for queries of seconds, which no test has (`jit` is off below).
RUN mkdir -p /etc/postgresql-common \
    && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-15 \
    && rm -rf /var/lib/apt/lists/* /usr/lib/*/libLLVM* \
    && useradd --no-log-init --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin crawlfleet
COPY postgres-start.sh /usr/local/bin/start
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/tmp/data
USER 10001:10001
# Fast shutdown: on SIGTERM it would wait for its clients to go.
STOPSIGNAL SIGINT
ENTRYPOINT ["sh", "/usr/local/bin/start"]
