#!/bin/sh
# Starts MariaDB in the foreground, making its data directory the first time.
# Runs as root in any Debian-based image that has MariaDB; see mariadb.go.
set -eu
data=/var/lib/dbops/data
mkdir -p "$data" /run/mysqld
chown mysql:mysql "$data" /run/mysqld /dbops/*
chmod 0700 "$data"
init=
if [ ! -d "$data/mysql" ]; then
	mariadb-install-db --no-defaults --datadir="$data" --user=mysql --skip-test-db \
		--auth-root-authentication-method=normal >/dev/null
	init=/dbops/init.sql
fi
exec setpriv --reuid=mysql --regid=mysql --init-groups mariadbd \
	--defaults-file=/dbops/server.cnf --datadir="$data" ${init:+--init-file="$init"}
