#!/usr/bin/env python3
"""Verifies receipts of withdrawals, and statements of what a source gave, offline: verify_receipt.py PUBLIC_KEYS FILE [FILE ...]
Made after docs/receipts.md and RFC 9162 alone. Needs `cryptography`. Exit code: 0 if all hold, 1 if one does not."""
import base64, hashlib, json, re, sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

def ensure(holds, reason):
    if not holds:
        raise ValueError(reason)

def refuse(what):
    raise ValueError(f"{what} is no number")

def load(text):
    return json.loads(text, parse_constant=refuse)

def is_number(n, least=-2**63, most=2**63 - 1):  # of 64 bits, and written without a fraction
    return type(n) is int and least <= n <= most

def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()

def decode(text):
    data = base64.b64decode(text, validate=True)
    ensure(base64.b64encode(data).decode() == text, "base64 that is written in another way")
    return data

def unhex(text):
    ensure(isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text), f"{text!r} is no hash")
    return bytes.fromhex(text)

def read_keys(path):
    keys = {}
    for line in filter(str.strip, open(path, encoding="utf-8")):  # name+id+base64(1 || key); the name has no '+'
        name, key_id, data = line.strip().split("+", 2)
        data = decode(data)
        ensure(data[:1] == b"\1" and sha(name.encode(), b"\n", data)[:4].hex() == key_id, "a public key is damaged")
        keys[name, bytes.fromhex(key_id)] = Ed25519PublicKey.from_public_bytes(data[1:])
    return keys

def open_note(note, keys):
    """The text of a signed note (C2SP signed-note), and who signed it."""
    text, separator, lines = note.rpartition("\n\n")
    ensure(separator and lines.endswith("\n"), "it is not signed")
    text, signers = text + "\n", []
    for line in lines[:-1].split("\n"):
        ensure(re.fullmatch("\u2014 [^ ]+ [^ ]{12,}", line), "a line of signatures is none")
        name, data = line.split(" ")[1], decode(line.split(" ")[2])
        if (name, data[:4]) in keys:
            keys[name, data[:4]].verify(data[4:], text.encode())
            signers.append(name)
    ensure(signers, "none of the public keys signed it")
    return text, signers[0]

def check_included(entry, position, size, proof, root):  # RFC 9162, section 2.1.3.2
    ensure(type(position) is int and 0 <= position < size and type(proof) is list, "a position is beyond the log")
    first, last, node = position, size - 1, sha(b"\0", entry.encode())
    for sibling in map(unhex, proof):
        ensure(last > 0, "a proof is too long")
        if first & 1 or first == last:
            node = sha(b"\1", sibling, node)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            node = sha(b"\1", node, sibling)
        first, last = first >> 1, last >> 1
    ensure(last == 0 and node == root, "an entry is not in the log")

def read_trie(steps):
    """(hash, part), where a part is None if it is hidden, (key, value) or (bit, left, right)."""
    stack = []
    for step in steps:
        kind, *words = step.split(" ")
        if (kind, len(words)) in (("leaf", 1), ("source", 2), ("hash", 1)):
            words = [unhex(word) for word in words]
            stack.append((words[0], None) if kind == "hash" else (sha(b"\0", *words), (words[0], words[-1])))
        else:
            ensure(re.fullmatch("node (0|[1-9][0-9]{0,2})", step), "a part of a proof is none")
            bit, right, left = int(words[0]), stack.pop(), stack.pop()
            below = [half[1][0] for half in (left, right) if half[1] and len(half[1]) == 3]
            ensure(bit < 256 and all(b > bit for b in below), "the bits of a proof do not rise")
            stack.append((sha(b"\1", bytes([bit]), left[0], right[0]), (bit, left, right)))
    ensure(len(stack) == 1, "a proof is not one trie")
    return stack[0]

def find(part, key):  # its value; None if it is absent; hidden parts refuse
    while part and len(part) == 3:
        part = part[2 if key[part[0] // 8] & (0x80 >> part[0] % 8) else 1][1]
    ensure(part, "a proof hides whether something is there")
    return part[1] if part[0] == key else None

def check_absence(absence, expected, root):
    documents = [unhex(document) for document in absence["documents"]]
    own = {"source": absence["source"], "n_documents": len(documents), "digest": sha(*documents).hex()}
    ensure(documents == sorted(set(documents)) and own == expected, "the documents are not those of the log")
    if root == sha():
        return ensure(not absence["in_store"] and not absence["in_source"], "a proof about an empty store")
    found, store = read_trie(absence["in_store"])
    source = find(store, sha(absence["source"].encode()))
    ensure(found == root, "a proof is of another store")
    if source is None:
        return ensure(not absence["in_source"], "a proof about a source that is not there")
    found, trie = read_trie(absence["in_source"])
    ensure(found == source, "a proof is of another source")
    ensure(all(find(trie, document) is None for document in documents), "a document is in the store")

# Forms: of a leaf what it must be, of a list the form of its parts, of an object the forms of its fields in their order.
def string(value):
    return type(value) is str

def u64(value):
    return is_number(value, 0, 2**64 - 1)

def hashed(value):
    return string(value) and re.fullmatch("[0-9a-f]{64}", value)

def name(value):  # of a source
    return string(value) and re.fullmatch("[a-z0-9][a-z0-9._-]{0,62}", value)

def formed(value, form):
    if callable(form):
        return form(value)
    if type(form) is list:
        return type(value) is list and all(formed(part, form[0]) for part in value)
    return type(value) is dict and list(value) == list(form) and all(formed(value[key], form[key]) for key in form)

def optional(form):
    return lambda value: value is None or formed(value, form)

STATE = {"epoch": u64, "root": hashed, "model": hashed, "recipe": hashed}
CHANGES = {
    "remove": {"kind": string, "removal": u64, "selector": string,
               "documents": [{"source": name, "n_documents": u64, "digest": hashed}], "root_before": hashed, "state": STATE},
    "in-force": {"kind": string, "removal": u64, "durable_at_unix_ms": is_number, "effective_at_unix_ms": is_number},
    "purge": {"kind": string, "removals": [u64]},
    "statement": {"kind": string, "source": name, "from_unix_ms": is_number, "to_unix_ms": is_number, "report": hashed}}
LOGGED = {"position": u64, "entry": string, "proof": [hashed]}
ABSENCE = {"source": name, "documents": [hashed], "in_store": [string], "in_source": [string]}
MODEL = {"model": string, "hash": hashed, "sources": optional([name])}
RECEIPT = {"store": string, "issued_at_unix_ms": is_number, "removal": LOGGED, "in_force": LOGGED, "purged": optional(LOGGED),
           "absence": [ABSENCE], "backups": [string], "models": [MODEL], "checkpoint": string}
HOUR = {"start_unix_ms": is_number, "n_responses": u64, "n_tokens": u64, "share_millionths": u64, "n_passage_responses": u64,
        "n_verbatim_tokens": u64}
REPORT = {"source": name, "from_unix_ms": is_number, "to_unix_ms": is_number, "hours": [HOUR]}
STATEMENT = {"store": string, "issued_at_unix_ms": is_number, "report": REPORT, "logged": LOGGED, "checkpoint": string}

def verify(text, keys):
    title, _, body = open_note(text, keys)[0].partition("\n")
    known = {"silo receipt v1": RECEIPT, "silo statement v1": STATEMENT}
    receipt = load(body) if title in known else {}
    same = json.dumps(receipt, indent=2, ensure_ascii=False) + "\n" == body
    ensure(title in known and formed(receipt, known[title]) and same, "it is not written as receipts and statements are")
    note, signer = open_note(receipt["checkpoint"], keys)
    number = "(0|[1-9][0-9]*)"
    words = re.fullmatch(f"[^\x00-\x1f\x7f-\x9f]+\n{number}\n(.+)\nsilo epoch {number} root ([0-9a-f]{{64}}) at {number}\n", note)
    size, tree, epoch, root, at = int(words[1]), decode(words[2]), int(words[3]), unhex(words[4]), int(words[5])
    ensure(u64(size) and u64(epoch) and is_number(at) and len(tree) == 32, "a number of the checkpoint is none")
    def entry(logged, kind):
        found = load(logged["entry"])
        form = {"at_unix_ms": is_number, "actor": string, "change": CHANGES[kind]}
        ensure(formed(found, form) and found["change"]["kind"] == kind, f"an entry is no '{kind}'")
        same = json.dumps(found, separators=(",", ":"), ensure_ascii=False) == logged["entry"]
        ensure(same, "an entry is not written as entries are")
        check_included(logged["entry"], logged["position"], size, logged["proof"], tree)
        return logged["position"], found["at_unix_ms"], found["change"]
    if title == "silo statement v1":
        return check_statement(receipt, entry(receipt["logged"], "statement"), at, signer)
    place, asked, change = entry(receipt["removal"], "remove")
    later, _, moments = entry(receipt["in_force"], "in-force")
    ensure(moments["removal"] == change["removal"] and later > place, "its second entry is of another withdrawal")
    later, purged, purge = entry(receipt["purged"], "purge") if receipt["purged"] else (later, "(not yet)", change)
    of_it = purge is not change and change["removal"] in purge["removals"] and later > place
    ensure(receipt["purged"] is None or of_it, "its third entry is not its purge")
    after, issued = change["state"], receipt["issued_at_unix_ms"]
    ensure((epoch, root) == (after["epoch"], unhex(after["root"])) or epoch > after["epoch"], "the checkpoint is too old")
    ordered = asked <= at <= issued
    ensure(ordered and moments["durable_at_unix_ms"] <= moments["effective_at_unix_ms"], "its moments are not in order")
    ensure(len(receipt["absence"]) == len(change["documents"]), "its sources are not those of the log")
    for absence, expected in zip(receipt["absence"], change["documents"]):
        check_absence(absence, expected, root)
    named = {part["source"] for part in change["documents"]}
    ensure(all(named.issuperset(model["sources"] or []) for model in receipt["models"]), "it names a source that it is not about")
    what = ", ".join(f"{part['n_documents']} documents of {part['source']}" for part in change["documents"])
    what += f"; in force since {moments['effective_at_unix_ms']}, in no file since {purged}"
    return f"holds: {what}, absent at epoch {epoch} ({signer})"

def check_statement(statement, logged, at, signer):
    report, (position, stated, change) = statement["report"], logged
    of, hours = (report["from_unix_ms"], report["to_unix_ms"]), report["hours"]
    starts = [hour["start_unix_ms"] for hour in hours]
    compact = json.dumps(report, separators=(",", ":"), ensure_ascii=False).encode()
    same = change["report"] == sha(compact).hex() and change["source"] == report["source"]
    ensure(same and of == (change["from_unix_ms"], change["to_unix_ms"]), "the log has another report")
    whole = of[0] < of[1] and all(at % 3_600_000 == 0 for at in (*of, *starts))
    in_order = starts == sorted(set(starts)) and all(of[0] <= start < of[1] for start in starts)
    ensure(whole and in_order, "hours are not whole, or not in order")
    ensure(stated <= at <= statement["issued_at_unix_ms"] and of[1] <= stated, "its moments are not in order")
    total = lambda what: sum(hour[what] for hour in hours)
    what = f"{report['source']} had {total('share_millionths') / 1e6:.3f} tokens of {total('n_responses')} answers"
    return f"holds: {what} from {of[0]} to before {of[1]}, entry {position} of the log ({signer})"

def main(keys, *paths):
    keys, failed = read_keys(keys), False
    for path in paths:
        try:
            print(f"{path}: {verify(open(path, encoding='utf-8', newline='').read(), keys)}")
        except (InvalidSignature, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            failed = not print(f"{path}: REFUSED: {str(error) or 'it was changed, or signed by another key'}")
    sys.exit(failed)

main(*sys.argv[1:])
