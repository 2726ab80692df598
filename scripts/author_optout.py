#!/usr/bin/env python3
"""The opt-out of an author, after Min et al. 2023, table 6: Jane Austen's novels are in the store, one novel is not and is scored.

Perplexity by the model alone, with the store, after the author was withdrawn, and of a store that never had the author; the last two
must be equal to the last bit. Needs the built program, the corpus (`silo corpus build`; where there is none, `silo corpus build brown sotu` suffices) and apt for the package with the novels.

    scripts/author_optout.py [--bytes 40000] > docs/results/author_optout.json
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import zlib

import service

WORK = pathlib.Path("work/author")
ADDRESS = "127.0.0.1:50064"
HELD_OUT = "Persuasion"
OTHERS = ("brown", "sotu")


def run(*arguments):
    return service.run(*arguments, address=ADDRESS)


def novels():
    """Chapters of the six novels: a lazy-load database of R, zlib blocks of strings in XDR."""
    package = WORK / "package"
    package.mkdir(parents=True, exist_ok=True)
    if not list(package.glob("*.deb")):
        subprocess.run(["apt-get", "download", "-qq", "r-cran-janeaustenr"], cwd=package, check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["dpkg", "-x", str(next(package.glob("*.deb")).resolve()), "x"], cwd=package, check=True)
    data = next(package.glob("x/**/Rdata.rdb")).read_bytes()
    texts, at = [], 0
    while at + 5 < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        for skip in (4, 5):  # the length, and in some versions the kind of compression
            try:
                reader = zlib.decompressobj()
                block = reader.decompress(data[at + skip :])
                break
            except zlib.error:
                block = None
        if block is None:
            at += 1
            continue
        at = len(data) - len(reader.unused_data)
        texts.append(strings(block))
    names = ["Emma", "Mansfield Park", "Northanger Abbey", "Persuasion", "Pride and Prejudice", "Sense and Sensibility"]
    out = {}
    for lines in (t for t in texts if len(t) > 2000):
        head = " ".join(lines[:40]).lower()
        name = next(n for n in names if n.lower() in head)
        chapters = re.split(r"\n(?=chapter [0-9ivxl]+\b)", "\n".join(lines), flags=re.I)
        out[name] = [c.strip() for c in chapters if len(c.strip()) > 500]
    return out


def strings(block):
    """Every CHARSXP of an XDR stream: flags with type 9, a length, the bytes."""
    out, at = [], 0
    while at + 8 <= len(block):
        flags, size = int.from_bytes(block[at : at + 4], "big"), int.from_bytes(block[at + 4 : at + 8], "big")
        if flags & 0xFF == 9 and flags < 1 << 20 and at + 8 + size <= len(block):
            out.append(block[at + 8 : at + 8 + size].decode("utf-8", "replace"))
            at += 8 + size  # strings are not padded
        else:
            at += 1
    return out


def documents(path, entries):
    with open(path, "w") as file:
        for uri, text in entries:
            file.write(json.dumps({"uri": uri, "text": text}) + "\n")
    return str(path)


def others():
    """Texts of other authors, for the shard that the author is in."""
    for source in OTHERS:
        text = run("corpus", "text", source, "--split", "train", "--max-bytes", "100000", "--corpus", "work/corpus")
        yield from ((f"{source}/{i}", part) for i, part in enumerate(text.split("\n\n")) if part.strip())


def fill(library, size):
    """The shard with or without the author, and a shard of each other source."""
    run("source", "create", "library", "--owner", "several", "--licence", "LicenseRef-public-domain")
    run("shard", "add", "--source", "library", library)
    for source in OTHERS:
        run("source", "create", "--declaration", f"datastore/{source}.toml")
        run("shard", "add", "--source", source, "--corpus", "work/corpus", "--max-bytes", str(size))


def score(text, mode):
    answer = run("score", "--file", text, "--mode", mode, "--json")
    return {k: answer[k] for k in ("log_probability", "bits_per_byte", "perplexity")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=40_000, help="of the held-out novel that are scored")
    parser.add_argument("--other-bytes", type=int, default=500_000, help="of each other source")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    books = novels()
    held_out = WORK / "held_out.txt"
    held_out.write_text("\n\n".join(books.pop(HELD_OUT))[: arguments.bytes])
    austen = [(f"book:austen/{name}/{i}", text) for name, chapters in books.items() for i, text in enumerate(chapters)]
    rest = list(others())
    # One shard holds the author among others: the withdrawal is of documents inside it.
    mixed = documents(WORK / "mixed.jsonl", austen + rest)
    without = documents(WORK / "without.jsonl", rest)
    modes = ("parametric", "knn", "knn-and-context")
    steps = {}
    server = service.Server(WORK, "with", ADDRESS)
    fill(mixed, arguments.other_bytes)
    steps["author in the store"] = {m: score(str(held_out), m) for m in modes}
    removal = run("shard", "remove", "--uri-prefix", "book:austen/", "--json")
    steps["author withdrawn"] = {m: score(str(held_out), m) for m in modes}
    root = run("store", "show", "--json")["root"]
    server.stop()
    server = service.Server(WORK, "without", ADDRESS)
    fill(without, arguments.other_bytes)
    steps["author never in the store"] = {m: score(str(held_out), m) for m in modes}
    never = run("store", "show", "--json")["root"]
    server.stop()
    equal = steps["author withdrawn"] == steps["author never in the store"] and root == never
    result = {
        **service.made("author_optout.py"),
        "model": "models/silo-open-6m",
        "held_out": HELD_OUT,
        "held_out_bytes": len(held_out.read_bytes()),
        "author_documents": len(austen),
        "author_bytes": sum(len(t.encode()) for _, t in austen),
        "others_in_its_shard": len(rest),
        "bytes_of_each_other_source": arguments.other_bytes,
        "steps": steps,
        "removal": removal["removal"],
        "root_after": root,
        "root_never": never,
        "withdrawn_equals_never_added": equal,
    }
    print(json.dumps(result, indent=1))
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
