#!/bin/sh
# The package has files that belong to the user.
set -e
if ! getent passwd papermap >/dev/null; then
	useradd --system --user-group --home-dir /var/lib/papermap --no-create-home --shell /usr/sbin/nologin papermap
fi
