#!/usr/bin/env bash
# What a quantiser made of open text alone costs, beside one made of the very domains that are searched: recall at equal cost, bits per byte.
# Needs the built program and the corpus. Writes docs/results/quantizers.json; work/quantizers holds the stores.
#   scripts/compare_quantizers.sh
set -euo pipefail
cd "$(dirname "$0")/.."
work=work/quantizers
mkdir -p "$work"
silo=${SILO:-target/release/silo}

$silo index train --model models/silo-open-6m --output "$work/domain.quantizer" --comparison anarchism,man-pages,maths-manuals
for kind in neutral domain; do
  quantizer=$(realpath indexes/silo-open-6m.quantizer)
  [ $kind = neutral ] || quantizer=$(realpath "$work/domain.quantizer")
  sed "s#^quantizer = .*#quantizer = \"$quantizer\"#; s#^name = .*#name = \"$kind\"#" indexes/ivf.toml >"$work/$kind.recipe.toml"
  set -- --config configs/eval.toml --output "$work/$kind-results" --set 'eval.domains=["anarchism", "man-pages", "maths-manuals"]' \
    --set store.comparison_quantizer=true --set "store.root='$work/$kind'" --set "store.recipe='$work/$kind.recipe.toml'" \
    --set "eval.cache='$work/evidence'" --set eval.sizes.test_tokens=4000 --set eval.sizes.validation_tokens=2000 --set eval.speed.runs=1
  $silo eval ppl "$@"
  $silo bench "$@"
done
python3 - "$work" >docs/results/quantizers.json <<'PYTHON'
import json, sys
out = {"command": "scripts/compare_quantizers.sh"}
for kind in ("neutral", "domain"):
    domains = json.load(open(f"{sys.argv[1]}/{kind}-results/domains.json"))
    speed = json.load(open(f"{sys.argv[1]}/{kind}-results/speed.json"))
    bits = {}
    for d in domains["domains"]:
        for m in d["measurements"]:
            if m["setting"] in ("parametric", "knn"):
                t = m["test"]
                bits[f"{d['domain']}, {m['setting']}, {m['scope']}"] = t["nats"] / t["n_bytes"] / 0.6931471805599453
    out[kind] = {"made": domains["made"], "search": speed["search"], "bits_per_byte": bits}
print(json.dumps(out, indent=1))
PYTHON
