#!/usr/bin/env bash
# The main job on real text, as a page to read. Needs the built program; fetches two small Debian packages of restricted text.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/target/release:$PATH" SILO_SERVER=127.0.0.1:50062
work=work/demo
rm -rf "$work"/store "$work"/text
mkdir -p "$work/text"
started=$SECONDS

say() { printf '\n%s\n' "$*"; }
title() { printf '\n\n== %s\n' "$*"; }
quietly() { "$@" >"$work/last.log" 2>&1 || { cat "$work/last.log" >&2; exit 1; }; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
bits() {
  local result
  result=$(silo score --file "$held_out" --json "${@:2}")
  python3 -c 'import json, sys; d = json.loads(sys.argv[2]); print("%-35s %.4f bits per byte, perplexity %.1f" % (sys.argv[1], d["bits_per_byte"], d["perplexity"]))' "$1" "$result"
}
exact() { silo score --file "$held_out" --json "$@" | field log_probability; }

title "1. Two sources that may not be trained on"
say "Documentation under terms that keep it out of the model's weights, fetched as Debian packages. Every file got a licence and a tier:"
quietly silo corpus build --corpus "$work/corpus" --cache work/packages vim-doc anarchism
silo corpus stats --corpus "$work/corpus"

title "2. A model that never saw them, and a store that holds them"
sed -n '/^A language model/p' models/silo-open-6m/README.md | fold -s -w 110
[ -e "$work/silo.key" ] || quietly silo key create example.org/demo --key "$work/silo.key"
: >"$work/server.log"
silo serve --config configs/demo.toml >"$work/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until grep -q "ready at" "$work/server.log"; do
  kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
  read -r -t 0.1 <> <(:) || true
done
empty_root=$(silo generate "x" --max-new-tokens 1 --temperature 0 --mode knn --json | field root)
for source in vim-doc anarchism; do
  quietly silo source create --declaration "datastore/$source.toml"
  silo shard add --source "$source" --corpus "$work/corpus" --max-bytes 800000
done
silo source ls

title "3. Generation that consults the store, with the share of every source in every token"
prompt="To move the cursor to the end of the"
say "The prompt: '$prompt'. The model alone:"
silo generate "$prompt" --max-new-tokens 16 --temperature 0
say "With the neighbours of vim-doc (a filter of this request; without it, of all sources):"
silo generate "$prompt" --max-new-tokens 16 --temperature 0 --mode knn --allow-source vim-doc --attribute-tokens

title "4. What the store is worth, on a text that is not in it"
held_out=$work/text/held-out.txt
silo corpus text vim-doc --corpus "$work/corpus" --split validation --max-bytes 8000 >"$held_out"
bits "the model alone" --mode parametric
bits "with nearest neighbours (kNN-LM)" --mode knn
bits "with passages before the text" --mode context
bits "with both" --mode knn-and-context

title "5. An opt-out: the rights holder of vim-doc withdraws it"
parametric=$(exact --mode parametric)
echo "log p of the held-out text by the model alone:           $parametric"
before=$(exact --mode knn --deny-source anarchism)
echo "with the neighbours of vim-doc, before the withdrawal:   $before"
silo shard remove --source vim-doc | tee "$work/removal.txt"
after=$(exact --mode knn --deny-source anarchism)
echo "with the neighbours of vim-doc, after it:                $after"
if [ "$after" = "$parametric" ]; then
  say "The same number to its last digit: what was removed is as if it had never been there."
else
  say "The numbers differ: this must never be." >&2
  exit 1
fi
removal=$(sed -n 's/.* entry \([0-9]*\) of the log.*/\1/p' "$work/removal.txt")
silo optout receipt "$removal" --output "$work/vim-doc.receipt"
say "The rights holder gets a signed receipt ($work/vim-doc.receipt), and verifies it with the public key and nothing else:"
silo optout verify "$work/vim-doc.receipt" --key "$work/silo.key.pub"
say "The other source goes too:"
silo shard remove --source anarchism | tail -1
last_root=$(silo generate "x" --max-new-tokens 1 --temperature 0 --mode knn --json | field root)
[ "$last_root" = "$empty_root" ] || { say "The root of the emptied store is not that of an empty one." >&2; exit 1; }
say "With the other source withdrawn as well, the store's root hash is that of the empty store again: $empty_root"
say "Done in $((SECONDS - started)) seconds. The store is at $work/store; 'configs/demo.toml' serves it."
