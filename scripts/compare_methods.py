#!/usr/bin/env python3
"""Other ways to index keys and to use neighbours, on keys that silo exports: codes and projections with and without exact distances at the end,
made of openly licensed text or of the domains; keys of packed documents; larger k; pointers along documents (RetoMaton, Alon et al. 2022).

    sizes="--set eval.sizes.validation_tokens=600 --set eval.sizes.test_tokens=1000"
    silo eval export --config configs/eval_small.toml $sizes --output work/export/domains
    silo eval export --config configs/eval_small.toml $sizes --packed --output work/export/packed
    silo eval export --config configs/neutral.toml --set eval.sizes.validation_tokens=1 --set eval.sizes.store_bytes=40000 --output work/export/open
    python3 scripts/compare_methods.py work/export docs/results/methods.json

Writes JSON and prints tables; takes an hour. One weight at every token; weight, temperature, match bonus and k are tuned on the validation text of all domains together,
for each row; test text is scored once. Exact search over 16-bit keys, as indexes/exact.toml has it, is the row that others are compared with.
Needs numpy, safetensors and faiss-cpu.
"""
import json
import pathlib
import sys
import time

import faiss
import numpy as np
from safetensors.numpy import load_file

K, MATCH_TOKENS, RESCORED = 1024, 16, 2048
GRID_K = [64, 256, 1024]
TEMPERATURES = [4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0]
BONUSES = [0.0, 0.2, 0.4, 0.8]
WEIGHTS = np.arange(0.0, 1.0, 0.05)
SEED = 1


class Store:
    """The entries of all domains, documents one after the other."""

    def __init__(self, folder):
        parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        self.keys = np.concatenate([p["store.keys"] for p in parts])
        self.values = np.concatenate([p["store.values"] for p in parts]).astype(np.int64)
        lengths = np.concatenate([p["store.entries_of_documents"] for p in parts]).astype(np.int64)
        # Of each entry: its place in its document, and whether it is the last one.
        ends = np.cumsum(lengths)
        self.place = np.arange(len(self.values)) - np.repeat(ends - lengths, lengths)
        self.last = np.zeros(len(self.values), bool)
        self.last[ends[lengths > 0] - 1] = True


class Split:
    """Held-out text of all domains."""

    def __init__(self, folder, name):
        parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        of = lambda what: np.concatenate([p[f"{name}.{what}"] for p in parts])
        self.keys, self.log_p = of("keys"), of("log_p")
        self.tokens = of("tokens").astype(np.int64)
        lengths = of("tokens_of_texts").astype(np.int64)
        self.place = np.concatenate([np.arange(n) for n in lengths])
        self.n_bytes = int(of("bytes_of_texts").sum())

    def bits(self, nats):
        return float(nats / self.n_bytes / np.log(2))


class Neighbors:
    """Of each token, nearest first: squared distances, and values, bonus and hits that follow from rows; -1 is no neighbour."""

    def __init__(self, store, split, rows, distances):
        self.distances = np.where(rows < 0, np.inf, distances).astype(np.float32)
        safe = np.maximum(rows, 0)
        self.hits = (store.values[safe] == split.tokens[:, None]) & (rows >= 0)
        self.matched = np.zeros(rows.shape, np.float32)
        same = rows >= 0
        for back in range(1, MATCH_TOKENS + 1):
            inside = (store.place[safe] >= back) & (split.place[:, None] >= back)
            before = split.tokens[np.maximum(np.arange(len(rows)) - back, 0)]
            same &= inside & (store.values[np.maximum(safe - back, 0)] == before[:, None])
            if not same.any():
                break
            self.matched += same

    def p_knn(self, temperature, bonus, ks):
        """p of each token by its first k neighbours, for each k."""
        out = {k: np.zeros(len(self.hits)) for k in ks}
        for at in range(0, len(self.hits), 4096):
            part = slice(at, at + 4096)
            score = bonus * self.matched[part] - self.distances[part] / temperature
            weights = np.exp(score - score.max(1, keepdims=True))
            hits = weights * self.hits[part]
            for k in ks:
                out[k][part] = hits[:, :k].sum(1) / np.maximum(weights[:, :k].sum(1), 1e-30)
        return out


def loss(split, p_knn, weight):
    return -np.log(np.maximum((1 - weight) * np.exp(split.log_p) + weight * p_knn, 1e-30)).sum()


def tune(split, neighbors, ks):
    best = None
    for temperature in TEMPERATURES:
        for bonus in BONUSES:
            for k, p_knn in neighbors.p_knn(temperature, bonus, ks).items():
                for weight in WEIGHTS:
                    nats = loss(split, p_knn, weight)
                    if best is None or nats < best[0]:
                        best = (nats, {"k": k, "weight": round(float(weight), 2), "temperature": temperature, "match_bonus": bonus})
    return best


def measure(store, splits, found, ks=None):
    """Tunes on validation, scores test; `found` gives rows and distances of a split, by its name."""
    neighbors = {name: Neighbors(store, split, *found(name)) for name, split in splits.items()}
    nats, tuned = tune(splits["validation"], neighbors["validation"], ks or GRID_K)
    p_knn = neighbors["test"].p_knn(tuned["temperature"], tuned["match_bonus"], [tuned["k"]])[tuned["k"]]
    test = loss(splits["test"], p_knn, tuned["weight"])
    return {"tuned": tuned, "validation": splits["validation"].bits(nats), "test": splits["test"].bits(test)}


def search(index, keys, k):
    distances, rows = [], []
    for at in range(0, len(keys), 512):
        d, r = index.search(keys[at : at + 512], k)
        distances.append(d)
        rows.append(r)
    return np.concatenate(rows), np.concatenate(distances)


def recall(rows, truth):
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(rows, truth)]))


def pointers(store, split, rows, at_least=None):
    """RetoMaton's states: an entry after one that had the token which came. Beside what a search finds; or, with `at_least`, instead of it as soon
    as there are so many. Gives rows, distances, and the share of tokens that were searched for."""
    out_rows = np.full((len(rows), 2 * K), -1, np.int64)
    out_distances = np.full((len(rows), 2 * K), np.inf, np.float32)
    states, searched = np.zeros(0, np.int64), 0
    for t in range(len(rows)):
        if split.place[t] == 0:
            states = states[:0]
        found = states
        if at_least is None or len(states) < at_least:
            found = np.union1d(states, rows[t][rows[t] >= 0])
            searched += 1
        distances = ((store.keys[found] - split.keys[t]) ** 2).sum(1)
        order = np.argsort(distances, kind="stable")[: 2 * K]
        found, distances = found[order], distances[order]
        out_rows[t, : len(found)], out_distances[t, : len(found)] = found, distances
        right = found[(store.values[found] == split.tokens[t]) & ~store.last[found]]
        states = right[:K] + 1
    return out_rows, out_distances, searched / len(rows)


def indexes(dim):
    """Name, bytes of a code, and what makes the index."""
    out = []
    for d in (32, 64, 128):
        out.append((f"{d} principal components, 16 bits", 2 * d, f"PCA{d},SQfp16"))
    out.append(("codes of 8 bits (SQ8)", dim, "SQ8"))
    out.append(("64 principal components, codes of 8 bits", 64, "PCA64,SQ8"))
    out.append(("128 principal components, codes of 8 bits (indexes/ivf.toml's codes)", 128, "PCA128,SQ8"))
    out.append(("product quantiser, 64 bytes", 64, "PQ64"))
    out.append(("product quantiser, 32 bytes", 32, "PQ32"))
    out.append(("product quantiser, 4 bits, 32 bytes (fast-scan)", 32, "PQ64x4fs"))
    return out


def compare_indexes(store, splits, open_keys, truth, note):
    dim = store.keys.shape[1]
    for name, n_bytes, factory in indexes(dim):
        for made_of, sample in (("open text", open_keys), ("the domains", store.keys)):
            rng = np.random.default_rng(SEED)
            sample = sample[rng.permutation(len(sample))[:100_000]]
            base = faiss.index_factory(dim, factory)
            base.train(sample)
            base.add(store.keys)
            kept = {}
            for rescored in (False, True):
                index = base
                if rescored:
                    index = faiss.IndexRefineFlat(base, faiss.swig_ptr(store.keys))
                    index.k_factor = RESCORED / K
                start = time.perf_counter()
                kept = {split: search(index, of.keys, K) for split, of in splits.items()}
                took = (time.perf_counter() - start) * 1e3 / sum(len(of.keys) for of in splits.values())
                row = measure(store, splits, kept.get)
                found = recall(kept["test"][0], truth)
                end = "exact, of the best 2,048" if rescored else "of codes"
                note("indexes", {"index": name, "made of": made_of, "distances": end, "bytes of a key": n_bytes + (2 * dim if rescored else 0), "recall": found,
                                 "milliseconds": took, **row})


def main():
    folder, output = pathlib.Path(sys.argv[1]), sys.argv[2]
    store = Store(folder / "domains")
    splits = {name: Split(folder / "domains", name) for name in ("validation", "test")}
    packed = Store(folder / "packed")
    assert (packed.values == store.values).all(), "the packed export is of other text"
    packed.place = store.place  # what matches ends with a document either way
    open_keys = np.concatenate([load_file(path)["store.keys"] for path in sorted((folder / "open").glob("*.safetensors"))])
    rows = {"indexes": [], "methods": []}
    alone = {name: of.bits(-of.log_p.sum()) for name, of in splits.items()}

    def note(table, row):
        rows[table].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    exact = {}
    for name, keys in (("keys of 32 bits", store.keys), ("keys of 16 bits", store.keys.astype(np.float16).astype(np.float32)),
                       ("keys of 16 bits, documents packed", packed.keys.astype(np.float16).astype(np.float32))):
        index = faiss.IndexFlatL2(keys.shape[1])
        index.add(keys)
        # More than K, for the comparison of k.
        found = {split: search(index, of.keys, 4 * K) for split, of in splits.items()}
        cut = lambda k: lambda split: tuple(a[:, :k] for a in found[split])
        if not exact:
            exact = {split: rows for split, (rows, _) in found.items()}
        n_bytes = keys.shape[1] * (4 if name == "keys of 32 bits" else 2)
        of_packed = "packed" in name
        row = measure(packed if of_packed else store, splits, cut(K))
        # Neighbours of other keys are not wrong.
        found_share = "" if of_packed else recall(found["test"][0][:, :K], exact["test"][:, :K])
        note("indexes", {"index": f"exact, {name}", "made of": "", "distances": "exact", "bytes of a key": n_bytes, "recall": found_share, **row})
        if name == "keys of 16 bits":
            store.keys, near = keys, {split: rows[:, :K] for split, (rows, _) in found.items()}
            for k in (1, 2, 4):
                note("methods", {"method": f"search alone, k up to {k * K}", "searched": 1.0,
                                 **measure(store, splits, cut(k * K), GRID_K + [K * i for i in (2, 4) if i <= k])})
    for at_least in (None, 1024, 256, 64, 16):
        share = {}

        def found(split):
            rows, distances, share[split] = pointers(store, splits[split], near[split], at_least)
            return rows, distances

        name = "search and pointers" if at_least is None else f"pointers, search with fewer than {at_least}"
        row = measure(store, splits, found, GRID_K + [2 * K])
        note("methods", {"method": name, "searched": share["test"], **row})
    compare_indexes(store, splits, open_keys, exact["test"][:, :K], note)
    made = json.loads((folder / "domains/export.json").read_text())["made"]
    whole = {"made": made, "faiss": faiss.__version__, "seed": SEED, "n_open_keys": len(open_keys), "alone": alone, **rows}
    pathlib.Path(output).write_text(json.dumps(whole, indent=1) + "\n")
    print(tables(whole))


def tables(whole):
    alone = whole["alone"]["test"]
    out = "".join(f"* {key}: {whole['made'][key]}\n" for key in ("command", "commit", "machine", "n_entries"))
    for name in ("indexes", "methods"):
        head = [key for key in whole[name][-1] if key not in ("tuned", "milliseconds")]
        out += "\n| " + " | ".join(head + ["gain", "k", "weight", "temperature", "match bonus"]) + " |\n" + "| --- " * (len(head) + 5) + "|\n"
        for row in whole[name]:
            cells = [f"{row[key]:.4f}" if isinstance(row[key], float) else str(row[key]) for key in head]
            out += "| " + " | ".join(cells + [f"{alone - row['test']:.4f}"] + [str(x) for x in row["tuned"].values()]) + " |\n"
    return out


if __name__ == "__main__":
    main()
