#!/bin/sh
# dpkg calls it with `configure` and the old version, rpm with the number of versions installed.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart papermap-worker.service
fi
if [ "$1 $2" = 'configure ' ] || [ "$1" = 1 ]; then
	echo 'Edit /etc/papermap/worker.env and put the secrets in /etc/papermap/secrets. Then run:'
	echo '  systemctl enable --now papermap-worker'
fi
