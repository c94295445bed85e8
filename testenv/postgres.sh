#!/bin/sh
# Starts PostgreSQL in the foreground, making its data directory the first time.
# Runs as root in any Debian-based image that has PostgreSQL; see postgres.go.
# "postgres.sh template" makes the data directory that later ones are copies of:
# making one anew takes many times the processor time. An image need not have it.
set -eu
data=/var/lib/dbops/data
template=/usr/local/share/dbops-testenv/postgres.tar
if ! command -v postgres >/dev/null 2>&1; then
	PATH="$PATH:$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)"
	export PATH
fi
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
# Who may log in how is said in /dbops/pg_hba.conf.
make_data() { as_postgres initdb --no-sync --auth=trust --encoding=UTF8 --locale=C.UTF-8 -U postgres "$@" >/dev/null; }

if [ "${1:-}" = template ]; then
	# One file: a layer of an image may be slow to open a thousand. The WAL is made
	# anew by pg_resetwal.
	install -d -m 0700 -o postgres -g postgres "$data"
	make_data -D "$data"
	mkdir -p "${template%/*}"
	tar -C "$data" --exclude='./pg_wal/0*' -cf "$template" .
	rm -rf /var/lib/dbops
	exit
fi

mkdir -p "$data" /var/run/postgresql
chown postgres:postgres "$data" /var/run/postgresql /dbops/*
chmod 0700 "$data"
if [ ! -e /var/lib/dbops/made ]; then
	if [ -e /dbops/wal-elsewhere ]; then
		# The data directory is a small file system: a full one must refuse rows,
		# not panic for want of room for WAL.
		waldir=/var/lib/dbops-wal
		rm -rf "$waldir"
		install -d -m 0700 -o postgres -g postgres "$waldir"
		make_data --waldir="$waldir" -D "$data"
	elif [ -e "$template" ]; then
		tar -C "$data" -xpf "$template"
		# A server of its own: seven of the eight bytes of system_identifier, so that
		# it stays a positive number. pg_resetwal puts it into the WAL and a checksum
		# over it, and says first that the checksum is wrong.
		dd if=/dev/urandom of="$data/global/pg_control" bs=7 count=1 conv=notrunc status=none
		as_postgres pg_resetwal -f -D "$data" >/dev/null 2>&1
	else
		make_data -D "$data"
	fi
	# Before the test's own settings, which may forbid it. The alphabet of the password
	# needs no quoting.
	echo "ALTER ROLE postgres PASSWORD '$(cat /dbops/password)'" |
		as_postgres postgres --single -c password_encryption=scram-sha-256 -D "$data" postgres >/dev/null
	echo "include '/dbops/postgresql.conf'" >>"$data/postgresql.conf"
	touch /var/lib/dbops/made
fi
rm -f "$data/postmaster.pid"
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -D "$data"
