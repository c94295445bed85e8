#!/bin/sh
# Starts Redis in the foreground. Runs as root in any Debian-based image that has
# Redis; see redis.go.
set -eu
data=/var/lib/dbops/data
mkdir -p "$data"
chown redis:redis "$data" /dbops/*
cd "$data"
exec setpriv --reuid=redis --regid=redis --init-groups redis-server /dbops/redis.conf
