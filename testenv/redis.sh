#!/bin/sh
# Starts Redis in the foreground. Runs as root in any Debian-based image that has
# Redis; see redis.go.
set -eu
data=/var/lib/dbops/data
conf=/dbops/redis.conf
mkdir -p "$data"
# What the server itself writes is copied once and kept over a restart.
if [ -f /dbops/users.acl ] && [ ! -f "$data/users.acl" ]; then cp /dbops/users.acl "$data/users.acl"; fi
if [ -f /dbops/writable ]; then
	if [ ! -f "$data/redis.conf" ]; then cp "$conf" "$data/redis.conf"; fi
	conf=$data/redis.conf
fi
chown -R redis:redis "$data"
chown redis:redis /dbops/*
cd "$data"
exec setpriv --reuid=redis --regid=redis --init-groups redis-server "$conf"
