#!/bin/sh
# Starts MariaDB or MySQL, whichever the image has, in the foreground, making its data
# directory the first time. Runs as root in any Debian-based image that has one of
# them; see mariadb.go.
set -eu
data=/var/lib/dbops/data
mkdir -p "$data" /run/mysqld
chown mysql:mysql "$data" /run/mysqld /dbops/*
chmod 0700 "$data"
as_mysql() { setpriv --reuid=mysql --regid=mysql --init-groups "$@"; }
server=mysqld
if command -v mariadbd >/dev/null 2>&1; then server=mariadbd; fi
init=
if [ ! -d "$data/mysql" ]; then
	if [ "$server" = mariadbd ]; then
		mariadb-install-db --no-defaults --datadir="$data" --user=mysql --skip-test-db \
			--auth-root-authentication-method=normal >/dev/null
	else
		as_mysql mysqld --no-defaults --innodb-flush-method=nosync --initialize-insecure --datadir="$data"
	fi
	init=/dbops/init.sql
fi
exec setpriv --reuid=mysql --regid=mysql --init-groups "$server" \
	--defaults-file=/dbops/server.cnf --datadir="$data" ${init:+--init-file="$init"}
