# Run PostgreSQL; at its first start with an empty database `crawlfleet`, owned by a user of that name.
set -eu

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=crawlfleet --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync >&2
    echo 'host all all all trust' >> "$PGDATA/pg_hba.conf"
    echo 'create database crawlfleet' | postgres --single postgres >&2
fi
# A pod that dies takes no kernel with it: nothing is lost without fsync.
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off -c jit=off
