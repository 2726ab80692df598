#!/usr/bin/env python3
"""From acknowledged to proven: withdrawals from a served store of at least a million entries, their receipts, and forgeries of receipts.

Needs the built program and examples, the corpus (`silo corpus build`), and Python's cryptography.

    scripts/receipts.py > docs/results/receipts.json
"""

import json
import pathlib
import subprocess
import sys
import time

import service

WORK = pathlib.Path("work/receipts")
ADDRESS = "127.0.0.1:50068"
LEAST_ENTRIES = 1_000_000
FORGERIES = 1000
ENTRIES_OF_LOG = 1_000_000
SOURCES = ["vim-doc", "man-pages", "anarchism", "brown", "openstack-nova", "openstack-neutron"]
VIM = "pkg:deb/debian/vim-runtime@2:9.0.1378-2+deb12u2#usr/share/vim/vim90"


def silo(*arguments):
    return service.run(*arguments, address=ADDRESS)


def example(name, *arguments):
    command = ["cargo", "run", "--release", "--quiet", "-p", "silo-tests", "--example", name, "--", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fill():
    entries = 0
    for source in SOURCES:
        if entries < LEAST_ENTRIES and pathlib.Path(f"datastore/{source}.toml").exists():
            silo("source", "create", "--declaration", f"datastore/{source}.toml")
            silo("shard", "add", "--source", source, "--corpus", "work/corpus")
            entries = silo("store", "show", "--json")["n_entries"]
    return entries


def verified(*receipts):
    """Both verifiers; milliseconds of each, its start among them."""
    keys, out = WORK / "store.key.pub", {}
    commands = {
        "silo": [service.SILO, "optout", "verify", str(receipts[0]), "--key", str(keys)],
        "python": [sys.executable, "scripts/verify_receipt.py", str(keys), *map(str, receipts)],
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


def forgeries():
    folder = WORK / "forged"
    said = example("forge", folder, FORGERIES).strip()
    receipts = sorted(folder.glob("*.receipt"))
    command = [sys.executable, "scripts/verify_receipt.py", str(folder / "keys.pub"), *map(str, receipts)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    held = [line for line in lines if "REFUSED" not in line]
    return {
        "silo": said, "python_true_ones_that_hold": sum("true-" in line for line in held),
        "python_forged_ones_that_hold": sum("forged-" in line for line in held), "receipts": len(receipts),
    }


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    # One purge right after the other: the pauses between them are for those who generate.
    server = service.Server(WORK, "store", ADDRESS, changes=[("[server]", "[server]\npurge_share = 1.0")])
    try:
        entries = fill()
        withdrawals = {
            "a document": prove("document", "--source", "vim-doc", "--uri-prefix", f"{VIM}/doc/arabic.txt"),
            "a URI prefix": prove("prefix", "--source", "vim-doc", "--uri-prefix", f"{VIM}/doc/"),
            "a source": prove("source", "--source", "man-pages"),
        }
    finally:
        server.stop()
    log = json.loads(example("log", WORK / "log.hashes", ENTRIES_OF_LOG))
    out = {**service.made("receipts.py"), "entries": entries, "withdrawals": withdrawals, "log": log, "forgeries": forgeries()}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
