#!/usr/bin/env python3
"""Wrong input, tried on the built program and on a running service: what was done, and the answer, word for word.

Needs the built program, Python's grpcio-tools and grpcio-status and, for the full disk, the right to mount a small tmpfs (skipped, and said so, without it).

    scripts/bad_input.py > docs/results/bad_input.md
"""

import pathlib
import shutil
import subprocess
import sys

import service

WORK = pathlib.Path("work/bad_input")
ADDRESS = "127.0.0.1:50066"
MODEL = pathlib.Path("models/silo-open-6m")
ROWS = []


def note(what, answer):
    here = str(pathlib.Path.cwd())
    answer = " ".join(answer.strip().replace(here, ".").split())
    ROWS.append((what, answer.replace("|", "\\|")))


def silo(*arguments):
    done = service.run(*arguments, address=ADDRESS, check=False)
    return f"exit {done.returncode}: {done.stdout} {done.stderr}"


def serve(what, changes):
    """A server that must not start."""
    try:
        service.Server(WORK, "refused", ADDRESS, changes).stop()
        note(what, "it started!")
    except RuntimeError as error:
        note(what, str(error))


def models():
    def with_weights(name, change):
        folder = WORK / name
        shutil.copytree(MODEL, folder)
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(change(file.read_bytes()))
        return [(f'path = "{MODEL}"', f'path = "{folder}"')]

    serve("weights cut off in the middle (safetensors)", with_weights("short", lambda b: b[: len(b) // 2]))
    serve("weights that are no safetensors", with_weights("random", lambda b: b"\xff" * 1000))
    gguf = WORK / "broken.gguf"
    gguf.write_bytes(b"GGUF" + bytes(range(200)))
    path = lambda file: [(f'path = "{MODEL}"', f'path = "{file}"'), ("indexes/ivf.toml", "indexes/exact.toml"), ("require_open_training = true", "")]
    serve("a GGUF file with a wrong head", path(gguf))
    whole = pathlib.Path("work/models/smollm2.gguf")
    if whole.exists():
        gguf.write_bytes(whole.read_bytes()[:50_000_000])
        serve("SmolLM2's GGUF file cut off after 50 MB", path(gguf))
    else:
        note("SmolLM2's GGUF file cut off after 50 MB", "not tried: work/models/smollm2.gguf is not there")
    serve("a model that was not trained on open text alone, as far as anyone knows", [(f'path = "{MODEL}"', 'path = "crates/model/tests/golden/gqa"'), ("indexes/ivf.toml", "indexes/tiny.toml")])


def details(error):
    """The rich details of a refusal, one after the other; what repeats its message is cut."""
    from google.protobuf import symbol_database, text_format
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    assert error_details_pb2.DESCRIPTOR  # known by name from here on
    status = rpc_status.from_call(error)
    out = ""
    for detail in status.details if status else ():
        message = symbol_database.Default().GetSymbol(detail.TypeName())()
        detail.Unpack(message)
        text = text_format.MessageToString(message, as_one_line=True, as_utf8=True)
        said = text_format.text_encoding.CEscape(error.details(), True)
        out += f" [{message.DESCRIPTOR.name} {text.replace(said, '…') if said else text}]"
    return out


def requests(modules):
    import grpc

    common, datastore, datastore_grpc, generation, generation_grpc, _, _ = modules
    channel = grpc.insecure_channel(ADDRESS)
    store, generate = datastore_grpc.DatastoreServiceStub(channel), generation_grpc.GenerationServiceStub(channel)
    knn = lambda **fields: common.Retrieval(mode=common.RetrievalMode.Value("KNN"), **fields)

    def call(what, method, request):
        try:
            method(request)
            note(what, "answered!")
        except grpc.RpcError as error:
            note(what, f"{error.code().name}: {error.details()}{details(error)}")

    text = lambda **fields: generation.GenerateRequest(text="The", max_new_tokens=2, **fields)
    call("k of 0", generate.Generate, text(retrieval=knn(k=0)))
    call("weight of 2", generate.Generate, text(retrieval=knn(knn_weight=2.0)))
    call("a prompt over the window", generate.Generate, generation.GenerateRequest(text="word " * 3000, max_new_tokens=1))
    call("a source that is not there, in a filter", generate.Generate, text(retrieval=knn(filter=common.Filter(allow_sources=["ghost"]))))
    call("an unknown shard", store.RemoveShard, datastore.RemoveShardRequest(id=99))
    call("the same, only asked for", store.GetShard, datastore.GetShardRequest(id=99))
    call("a licence that is no SPDX expression", store.CreateSource, datastore.CreateSourceRequest(source=datastore.Source(name="x", owner="y", licence="MIT or so")))
    call("a message over the limit", generate.Generate, generation.GenerateRequest(text="x" * 40_000_000))


def files():
    page = WORK / "page"
    page.mkdir()
    (page / "latin.html").write_bytes("<html><body><p>Caf\xe9 \x96 na\xefve. ".encode("latin-1") + b"A sentence that is long enough to be a document. " * 6 + b"</p></body></html>")
    (WORK / "latin.toml").write_text(f'name = "latin"\ntitle = "t"\nowner = "o"\nlicence = "LicenseRef-test"\nlicence_stated_at = "here"\nrole = "domain"\n'
                                     f'domain = "d"\n\n[importer]\nkind = "directory"\npath = "{page.resolve()}"\nfiles = ["*.html"]\nformat = "html"\n')
    declared = WORK / "declared"
    declared.mkdir()
    shutil.copy(WORK / "latin.toml", declared)
    built = silo("corpus", "build", "latin", "--declarations", str(declared), "--corpus", str(WORK / "corpus"))
    text = service.run("corpus", "text", "latin", "--split", "train", "--corpus", str(WORK / "corpus"), address=ADDRESS, check=False)
    note("an HTML file that is not UTF-8", f"{built[:6]}, read as Windows-1252: {(text.stdout or text.stderr)[:60]}…" if built.startswith("exit 0") else built)
    broken = WORK / "broken.toml"
    broken.write_text('name = "x"\nlicence = "MIT or so"\n')
    note("a declaration with half of its fields", silo("source", "create", "--declaration", str(broken)))
    lines = WORK / "lines.jsonl"
    lines.write_text('{"uri": "a", "text": "fine"}\n{"uri": "b"}\n')
    note("a line of documents without a text", silo("shard", "add", "--source", "kept", str(lines)))


def shards():
    lines = WORK / "kept.jsonl"
    lines.write_text('{"uri": "a", "text": "%s"}\n' % ("The cat sat on the mat. " * 40))
    silo("source", "create", "kept", "--owner", "o", "--licence", "LicenseRef-test")
    silo("source", "create", "damaged", "--owner", "o", "--licence", "LicenseRef-test")
    silo("shard", "add", "--source", "kept", str(lines))
    silo("shard", "add", "--source", "damaged", str(lines))


def damage(server):
    """The second shard's keys are cut off while the server is down."""
    server.stop()
    newest = max((WORK / "store" / "shards").iterdir(), key=lambda p: p.stat().st_mtime)
    keys = newest / "keys.bin"
    keys.write_bytes(keys.read_bytes()[:100])
    server = service.Server(WORK, "store", ADDRESS, fresh=False)
    note("keys of a shard cut off: its state", silo("shard", "show", "2"))
    note("… and the other one serves", silo("generate", "The cat", "--mode", "knn", "--max-new-tokens", "3", "--temperature", "0"))
    return server


def full_disk():
    place = WORK / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True).returncode:
        return note("a full disk", "not tried: no right to mount a tmpfs")
    try:
        server = service.Server(place, "store", ADDRESS)
        silo("source", "create", "big", "--owner", "o", "--licence", "LicenseRef-test")
        small = WORK / "kept.jsonl"
        note("a disk of 6 MB: a small shard", silo("shard", "add", "--source", "big", str(small))[:6])
        lines = WORK / "big.jsonl"
        lines.write_text("".join('{"uri": "%d", "text": "%s"}\n' % (i, f"Number {i} of many sentences on a mat. " * 80) for i in range(40)))
        note("… one that does not fit", silo("shard", "add", "--source", "big", str(lines)))
        generate = lambda: silo("generate", "The cat", "--mode", "knn", "--max-new-tokens", "2", "--temperature", "0", "--seed", "1")
        note("… and afterwards it serves as before", generate())
        server.stop()
        server = service.Server(place, "store", ADDRESS, fresh=False)
        note("… and after a restart", generate())
        note("… what there is", silo("shard", "ls"))
        note("… and can be removed", silo("shard", "remove", "1", "--no-wait")[:6])
        server.stop()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    made = service.made("bad_input.py")
    modules = service.stubs(WORK)
    models()
    server = service.Server(WORK, "store", ADDRESS)
    shards()
    requests(modules)
    files()
    note("a second server over the same store", second())
    server = damage(server)
    server.stop()
    full_disk()
    print("# Wrong input\n")
    print(f"`{made['command']}`, commit {made['commit']}, {made['machine']}. What was tried, and the answer word for word.\n")
    print("| tried | answer |\n| --- | --- |")
    for what, answer in ROWS:
        print(f"| {what} | {answer} |")


def second():
    try:
        service.Server(WORK, "store", ADDRESS, [(f'listen = "{ADDRESS}"', 'listen = "127.0.0.1:50067"')], fresh=False).stop()
        return "it started!"
    except RuntimeError as error:
        return str(error)


if __name__ == "__main__":
    main()
    wrong = [what for what, answer in ROWS if answer in ("it started!", "answered!")]
    sys.exit(f"not refused: {', '.join(wrong)}" if wrong else 0)
