#!/bin/sh
# Starts PostgreSQL in the foreground, making its data directory the first time.
# Runs as root in any Debian-based image that has PostgreSQL; see postgres.go.
set -eu
data=/var/lib/dbops/data
if ! command -v postgres >/dev/null 2>&1; then
	PATH="$PATH:$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)"
	export PATH
fi
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

mkdir -p "$data" /var/run/postgresql
chown postgres:postgres "$data" /var/run/postgresql /dbops/*
chmod 0700 "$data"
if [ ! -s "$data/PG_VERSION" ]; then
	waldir=
	if [ -e /dbops/wal-elsewhere ]; then
		# The data directory is a small file system: a full one must refuse rows,
		# not panic for want of room for WAL.
		waldir=/var/lib/dbops-wal
		rm -rf "$waldir"
		install -d -m 0700 -o postgres -g postgres "$waldir"
	fi
	as_postgres initdb --no-sync ${waldir:+--waldir="$waldir"} -D "$data" -U postgres --pwfile=/dbops/password \
		--auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 >/dev/null
	echo "include '/dbops/postgresql.conf'" >>"$data/postgresql.conf"
fi
rm -f "$data/postmaster.pid"
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -D "$data"
