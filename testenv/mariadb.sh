#!/bin/sh
# Starts MariaDB or MySQL, whichever the image has, in the foreground, making its data
# directory the first time. Runs as root in any Debian-based image that has one of
# them; see mariadb.go.
# "mariadb.sh template" makes the data directory that later ones of MariaDB are copies
# of: making one anew takes seconds. An image need not have it.
set -eu
data=/var/lib/dbops/data
template=/usr/local/share/dbops-testenv/mariadb.tar
as_mysql() { setpriv --reuid=mysql --regid=mysql --init-groups "$@"; }
server=mysqld
if command -v mariadbd >/dev/null 2>&1; then server=mariadbd; fi
make_data() {
	mariadb-install-db --no-defaults --datadir="$1" --user=mysql --skip-test-db \
		--auth-root-authentication-method=normal >/dev/null
}

if [ "${1:-}" = template ]; then
	# One file: a layer of an image may be slow to open hundreds.
	install -d -m 0700 -o mysql -g mysql "$data"
	make_data "$data"
	mkdir -p "${template%/*}"
	tar -C "$data" -cf "$template" .
	rm -rf /var/lib/dbops
	exit
fi

mkdir -p "$data" /run/mysqld
chown mysql:mysql "$data" /run/mysqld /dbops/*
chmod 0700 "$data"
init=
if [ ! -d "$data/mysql" ]; then
	if [ "$server" = mysqld ]; then
		as_mysql mysqld --no-defaults --innodb-flush-method=nosync --initialize-insecure --datadir="$data"
	elif [ -e "$template" ]; then
		tar -C "$data" -xpf "$template"
	else
		make_data "$data"
	fi
	init=/dbops/init.sql
fi
exec setpriv --reuid=mysql --regid=mysql --init-groups "$server" \
	--defaults-file=/dbops/server.cnf --datadir="$data" ${init:+--init-file="$init"}
