#!/bin/sh
# Sends the usage of a month, by default the last one, as CSV to ACCOUNTING_URL.
#
#   monthly-csv.sh [YYYY-MM]
set -eu
month=${1:-$(date -u -d "$(date -u +%Y-%m-01) - 1 day" +%Y-%m)}
file=$(mktemp)
trap 'rm -f "$file"' EXIT
papermap-worker usage export --from "$month" --to "$month" --format csv > "$file" # whole, or nothing is sent
curl --silent --show-error --fail --retry 5 --retry-all-errors --header 'Content-Type: text/csv' \
  --header "Idempotency-Key: usage-$month" --data-binary "@$file" "$ACCOUNTING_URL"
