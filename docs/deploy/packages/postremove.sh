#!/bin/sh
# Only a purge deletes the database, the secrets and the user. rpm has no purge.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/papermap /etc/papermap
	if getent passwd papermap >/dev/null; then
		userdel papermap
	fi
fi
