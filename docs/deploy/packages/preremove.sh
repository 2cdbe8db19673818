#!/bin/sh
# An upgrade (`upgrade` of dpkg, 1 of rpm) leaves the worker running until the new version is there.
set -e
if [ -d /run/systemd/system ]; then
	case "$1" in
	remove | 0) systemctl disable --now papermap-worker.service ;;
	esac
fi
