#!/usr/bin/env bash
# Runs `silo eval all` and the commands beside it with the tests' small random model, on paragraphs of this project's own pages.
set -euo pipefail
cd "$(dirname "$0")/.."

work=work/test/eval
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work"
export PATH="$PWD/target/release:$PATH"
cargo build --release --quiet
python3 - "$work" <<'PYTHON'
import json, pathlib, sys

for name, pattern in (("docs", "docs/*.md"), ("results", "docs/results/*.md")):
    with open(f"{sys.argv[1]}/{name}.jsonl", "w") as out:
        for page in sorted(pathlib.Path(".").glob(pattern)):
            for i, text in enumerate(page.read_text().split("\n\n")):
                if len(text) > 150:
                    out.write(json.dumps({"text": text, "uri": f"{page}#{i}", "title": page.stem}) + "\n")
PYTHON
silo corpus build --declarations tests/eval --corpus "$work/corpus" >"$work/out.txt" 2>&1 || { cat "$work/out.txt" >&2; exit 1; }
evaluate() { silo eval "$@" >"$work/out.txt" 2>&1 || { cat "$work/out.txt" >&2; exit 1; }; }
evaluate all --config configs/eval_test.toml --output "$work/results"
# What is exported is what is measured: the model's own bits per byte, and an entry for each value.
evaluate export --config configs/eval_test.toml --output "$work/export"
python3 - "$work" <<'PYTHON'
import array, json, pathlib, sys

work = pathlib.Path(sys.argv[1])
for domain in json.loads((work / "results/domains.json").read_text())["domains"]:
    data = (work / f"export/{domain['domain']}.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])
    numbers = lambda name, kind: array.array(kind, data[slice(*(start + at for at in head[name]["data_offsets"]))])
    entries = len(numbers("store.values", "I"))
    assert entries == sum(numbers("store.entries_of_documents", "Q")) == head["store.keys"]["shape"][0] > 0, head
    alone = next(m["test"] for m in domain["measurements"] if m["setting"] == "parametric")
    log_p = numbers("test.log_p", "d")
    assert len(log_p) == alone["n_tokens"] == head["test.keys"]["shape"][0], (len(log_p), alone)
    assert abs(sum(log_p) + alone["nats"]) < 1e-6 and sum(numbers("test.bytes_of_texts", "Q")) == alone["n_bytes"], alone
PYTHON
evaluate calibrate --config configs/eval_test.toml --output "$work/results/calibration.json"
# What is neutral is tuned on openly licensed text, which these pages are not said to be.
if silo eval calibrate --config configs/eval_test.toml --set eval.sizes.neutral=true --output "$work/neutral.json" 2>"$work/out.txt"; then
  echo "silo eval calibrate took governed text for neutral" >&2; exit 1
fi
grep -q 'whose role is "neutral"' "$work/out.txt" || { cat "$work/out.txt" >&2; exit 1; }
# Nor is it neutral for a package's licence that says so: its sentences are the restricted source's.
mkdir "$work/declarations"
cp tests/eval/docs.toml "$work/declarations"
sed -e 's/^name = .*/name = "copied"/; s/^role = .*/role = "neutral"/; s/^licence = .*/licence = "MIT"/' tests/eval/docs.toml >"$work/declarations/copied.toml"
silo corpus build --declarations "$work/declarations" --corpus "$work/copied" >"$work/out.txt" 2>&1 || { cat "$work/out.txt" >&2; exit 1; }
if silo corpus check --corpus "$work/copied" >"$work/out.txt" 2>&1; then
  echo "silo corpus check took restricted text for neutral" >&2; exit 1
fi
grep -q "100.00 % of 'copied'" "$work/out.txt" || { cat "$work/out.txt" >&2; exit 1; }
refused() {
  if silo corpus check --corpus "$work/copied" "$@" >"$work/out.txt" 2>&1; then echo "silo corpus check can be talked round" >&2; exit 1; fi
}
refused copied
grep -q "100.00 % of 'copied'" "$work/out.txt" || { cat "$work/out.txt" >&2; exit 1; }
refused --max-governed nan
grep -q "it must be from 0 to 1" "$work/out.txt" || { cat "$work/out.txt" >&2; exit 1; }
silo corpus check --corpus "$work/copied" --max-governed 1 --max-governed-of-document 1 | grep -q "1 neutral sources, compared with 1 that have restricted text: at most 100.00 %"
# One source cannot be built anew beside others that it is not compared with: then they would not be looked at any more.
if silo corpus build --declarations "$work/declarations" --corpus "$work/copied" copied >"$work/out.txt" 2>&1; then
  echo "silo corpus build forgot a source" >&2; exit 1
fi
grep -q "holds 'docs' too" "$work/out.txt" || { cat "$work/out.txt" >&2; exit 1; }
for page in domains weights overlap store-size removal-curve context keys generation swap works credit; do
  for file in "$page.md" "$page.csv" "$page.json"; do
    [ -s "$work/results/$file" ] || { echo "silo eval all wrote no $file" >&2; exit 1; }
  done
done
for picture in domains weights overlap store-size removal-curve context keys generation swap works credit; do
  [ -s "$work/results/$picture.svg" ] && [ -s "$work/results/$picture.png" ] || { echo "no picture of $picture" >&2; exit 1; }
done
[ "$(grep -c '^## ' "$work/results/summary.md")" -eq 11 ] || { cat "$work/results/summary.md" >&2; exit 1; }
# What was withdrawn is as if it had never been there, and what was computed without a source is what is found without it.
python3 - "$work" <<'PYTHON'
import json, pathlib, sys

results = pathlib.Path(sys.argv[1]) / "results"
works = json.loads((results / "works.json").read_text())
assert works["root_withdrawn"] == works["root_never"] != works["made"]["root"], works
for work in works["works"]:
    assert work["equal"] == work["withdrawn"]["n_tokens"] > 0 and work["withdrawn"] == work["never"] != work["with"], work
figures = json.loads((results / "credit.json").read_text())["figures"]
assert figures["compared"]["equal"] == figures["compared"]["tokens"] > 0, figures["compared"]
assert all(runs["found"] == runs["runs"] > 0 for runs in figures["runs"]), figures["runs"]
PYTHON
# What was searched for is kept: the second run finds the same, to the last digit.
cp "$work/results/domains.csv" "$work/first.csv"
evaluate ppl --config configs/eval_test.toml --output "$work/results"
cmp "$work/first.csv" "$work/results/domains.csv"
if grep -q "texts" "$work/out.txt"; then echo "silo eval ppl searched again for what it had found" >&2; exit 1; fi
echo "silo eval: ok"
