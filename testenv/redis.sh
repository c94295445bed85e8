#!/bin/sh
# Starts Redis, or Valkey, in the foreground. Runs as root in any Debian-based image
# that has it; see redis.go.
set -eu
data=/var/lib/dbops/data
conf=/dbops/redis.conf
name=redis
if [ -f /dbops/valkey ]; then name=valkey; fi
mkdir -p "$data"
# What the server itself writes is copied once and kept over a restart.
if [ -f /dbops/users.acl ] && [ ! -f "$data/users.acl" ]; then
	cp /dbops/users.acl "$data/users.acl"
	# Redis 6.0 knows no rights to channels, and does not start where there is one.
	case $("$name-server" --version) in *v=6.0.*) sed -i 's/ &\*//' "$data/users.acl" ;; esac
fi
if [ -f /dbops/writable ]; then
	if [ ! -f "$data/redis.conf" ]; then cp "$conf" "$data/redis.conf"; fi
	conf=$data/redis.conf
fi
chown -R "$name:$name" "$data"
chown "$name:$name" /dbops/*
cd "$data"
exec setpriv --reuid="$name" --regid="$name" --init-groups "$name-server" "$conf"
