#!/usr/bin/env bash
# Runs the README's "Try it" commands and those of docs/opt-out.md as they stand there, with the tests' small random model in place of a real one.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'kill "${server:-0}" 2>/dev/null || true; rm -rf "$work" work/test' EXIT
rm -rf work/test
sed -n '/<!-- try-it -->/,/<!-- end -->/p' README.md | sed -n '/^```sh$/,/^```$/p' | grep -v '^```' >"$work/commands.sh"
[ -s "$work/commands.sh" ] || { echo "README.md has no commands between its try-it marks" >&2; exit 1; }

export PATH="$PWD/target/release:$PATH"
cargo build --release --quiet
silo key create example.org/test --key work/test/silo.key >/dev/null 2>&1
: >"$work/server.log"
silo serve --config configs/test.toml >"$work/server.log" 2>&1 &
server=$!
until grep -q "ready at" "$work/server.log"; do
  kill -0 "$server" || { cat "$work/server.log" >&2; exit 1; }
  read -r -t 0.1 <> <(:) || true
done
SILO_SERVER=127.0.0.1:50071 bash -euo pipefail "$work/commands.sh" >"$work/out.txt" 2>&1 || { cat "$work/out.txt" >&2; exit 1; }
# Python's cryptography is not there on every machine: the script that verifies is left out.
sed -n '/<!-- walk -->/,/<!-- end -->/p' docs/opt-out.md | sed -n '/^```sh$/,/^```$/p' | grep -v '^```' | grep -v verify_receipt.py |
  sed 's#datastore/keys#work/test#' >"$work/walk.sh"
[ "$(wc -l <"$work/walk.sh")" -gt 15 ] || { echo "docs/opt-out.md has no commands between its walk marks" >&2; exit 1; }
SILO_SERVER=127.0.0.1:50071 bash -euo pipefail "$work/walk.sh" >"$work/walked.txt" 2>&1 || { cat "$work/walked.txt" >&2; exit 1; }
for expected in "nothing was changed" "opt-out 1 is in quarantine" "opt-out 1 is purged" "STATEMENT OF REASONS" "The receipt holds" \
  "refused, as it should be"; do
  grep -q "$expected" "$work/walked.txt" || { cat "$work/walked.txt" >&2; echo "not there: $expected" >&2; exit 1; }
done
removal=$(sed -n 's/.*withdrawn at epoch .* entry \([0-9]*\) of the log.*/\1/p' "$work/out.txt")
silo optout receipt "$removal" --server 127.0.0.1:50071 --output "$work/receipt"
silo optout verify "$work/receipt" --key work/test/silo.key.pub >"$work/verified.txt"
grep -q "The receipt holds" "$work/verified.txt"
grep -q "withdrawn at epoch" "$work/out.txt" || { cat "$work/out.txt" >&2; exit 1; }
echo "README commands: ok"
