#!/usr/bin/env bash
# Trains the models that docs/results/ compares with, each of the default model's size; none of them is served, and none is kept in the repository.
#
#   scripts/train_compared.sh tiers     public-domain text alone; with permissive; with attribution: from nothing, 4.9 million tokens each (the
#                                       default model: 49.2), in the default model's tokens, which were learnt on all three
#   scripts/train_compared.sh domains   for each domain of configs/eval.toml, the default model gone on with on its text in the store, twice
#
#   scripts/train_compared.sh all       all models of docs/results/ from nothing, one after the other: the default model (configs/train.toml), the one that
#                                       has learnt all text (configs/reference.toml), and these. Each part has been run, not yet all in one go
#   scripts/train_compared.sh measure   silo eval ppl with both, as far as they are there: docs/results/compared/
#
# A run that was stopped goes on at the next call.
set -euo pipefail
cd "$(dirname "$0")/.."

silo=${SILO:-target/release/silo}

train_tiers() {
  local name=$1 tiers=$2
  [ -e "work/models/$name/config.json" ] && return
  "$silo" train --config configs/train.toml --set "name='$name'" --set "data.tiers=$tiers" --set optimizer.steps=300 --set optimizer.warmup_steps=30 \
    --set "tokenizer.path='models/silo-open-6m/tokenizer.json'" --set "paths.work='work/train/$name'" --set "paths.output='work/models/$name'"
}

train_domain() {
  local name=reference-$1
  [ -e "work/models/$name/config.json" ] && return
  "$silo" train --config configs/reference.toml --set "name='$name'" --set "data.reference.sources=['$1']" --set data.open_bytes=200000 \
    --set optimizer.steps=50 --set optimizer.warmup_steps=5 --set log.checkpoint_every=50 --set "paths.work='work/train/$name'" \
    --set "paths.output='work/models/$name'"
}

train_all_tiers() {
  train_tiers silo-pd-6m "['public-domain']"
  train_tiers silo-pd-sw-6m "['public-domain', 'permissive']"
  train_tiers silo-pd-sw-by-6m "['public-domain', 'permissive', 'attribution']"
}

train_domains() {
  for domain in $(sed -n '/^domains = \[/,/\]/p' configs/eval.toml | grep -o '"[^"]*"' | tr -d '"'); do
    train_domain "$domain"
  done
}

case ${1:-} in
  tiers) train_all_tiers ;;
  domains) train_domains ;;
  all)
    "$silo" train --config configs/train.toml
    "$silo" train --config configs/reference.toml
    train_all_tiers
    train_domains
    ;;
  measure)
    references="{name = 'all text', path = 'models/reference-all-6m', knows_domains = true}"
    for name in silo-pd-6m silo-pd-sw-6m silo-pd-sw-by-6m; do
      [ ! -e "work/models/$name/config.json" ] || references+=", {name = '$name', path = 'work/models/$name'}"
    done
    [ ! -e work/models/reference-vim-doc/config.json ] ||
      references+=", {name = 'gone on with on the domain', path = 'work/models/reference-{domain}', knows_domains = true}"
    "$silo" eval ppl --config configs/eval.toml --set "eval.references=[$references]" --output docs/results/compared
    ;;
  *)
    echo "scripts/train_compared.sh: say all, tiers, domains or measure" >&2
    exit 2
    ;;
esac
