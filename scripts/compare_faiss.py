#!/usr/bin/env python3
"""Search beside the faiss-cpu wheel: the same keys, the same queries, the same machine.

    silo bench --config configs/eval.toml --queries-output work/eval/queries.f32
    python3 scripts/compare_faiss.py work/eval/store work/eval/queries.f32 docs/results/speed.json > docs/results/faiss.json

Prints JSON: recall@k against exact search, and milliseconds per query (one at a time, and 32 at a time; median of the runs), for
IndexIVFFlat and IndexIVFScalarQuantizer (8 bits) over several nprobe, and silo's figures from the bench. Needs numpy and faiss-cpu.
"""
import glob
import json
import statistics
import sys
import time

import faiss
import numpy as np

K, LISTS, RUNS, THREADS = 1024, 1024, 5, 2
root, queries_path, bench_path = sys.argv[1:4]
manifests = [json.load(open(p)) for p in sorted(glob.glob(f"{root}/shards/*/manifest.json"))]
dim = manifests[0]["key_dim"]
files = sorted(glob.glob(f"{root}/shards/*/keys.bin"))
keys = np.concatenate([np.fromfile(p, np.float16).reshape(-1, dim) for p in files]).astype(np.float32)
queries = np.fromfile(queries_path, np.float32).reshape(-1, dim)
faiss.omp_set_num_threads(THREADS)


def timed(index):
    one, many = [], []
    for _ in range(RUNS):
        start = time.perf_counter()
        for q in queries:
            index.search(q[None], K)
        one.append((time.perf_counter() - start) * 1e3 / len(queries))
        start = time.perf_counter()
        for at in range(0, len(queries), 32):
            index.search(queries[at : at + 32], K)
        many.append((time.perf_counter() - start) * 1e3 / len(queries))
    return statistics.median(one), statistics.median(many)


flat = faiss.IndexFlatL2(dim)
flat.add(keys)
truth = np.concatenate([flat.search(queries[at : at + 32], K)[1] for at in range(0, len(queries), 32)])
del flat
rng = np.random.default_rng(1)
sample = keys[rng.permutation(len(keys))[: LISTS * 200]]
rows = []
for name in ("IVFFlat", "IVFSQ8"):
    quantizer = faiss.IndexFlatL2(dim)
    if name == "IVFFlat":
        index = faiss.IndexIVFFlat(quantizer, dim, LISTS)
    else:
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, LISTS, faiss.ScalarQuantizer.QT_8bit)
    index.train(sample)
    index.add(keys)
    # One query alone is spread over threads by lists.
    index.parallel_mode = 1
    for n_probe in (8, 16, 32, 64, 128):
        index.nprobe = n_probe
        found = np.concatenate([index.search(queries[at : at + 32], K)[1] for at in range(0, len(queries), 32)])
        recall = np.mean([len(np.intersect1d(f, t)) / K for f, t in zip(found, truth)])
        one, many = timed(index)
        rows.append({"index": name, "n_probe": n_probe, "recall": float(recall), "milliseconds": one, "milliseconds_in_batches": many})
        print(rows[-1], file=sys.stderr)
bench = json.load(open(bench_path))
print(json.dumps({
    "faiss": faiss.__version__, "threads": THREADS, "k": K, "lists": LISTS, "runs": RUNS, "seed": 1, "n_keys": len(keys),
    "n_queries": len(queries), "trained_on": "the keys that are searched (faiss), open text (silo)", "rows": rows,
    "silo": bench["search"], "silo_made": bench["made"],
}, indent=1))
