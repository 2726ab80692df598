#!/usr/bin/env python3
"""A domain's shard is removed over gRPC while streams run: what is scored afterwards must equal a store that never had it, to the last bit.

Also: with that shard alone, what is scored after its removal must equal the model alone; how long until each stream has ended; and how long
until the place of a client that hung up is another's. Needs the built program, the corpus (`silo corpus build`) and
Python's grpcio-tools.

    scripts/live_removal.py > docs/results/live_removal.json
"""

import json
import pathlib
import sys
import threading
import time

import service

WORK = pathlib.Path("work/live_removal")
ADDRESS = "127.0.0.1:50065"
KEPT, REMOVED = "vim-doc", "man-pages"
BYTES = 300_000
STREAMS = 8
MODES = ("PARAMETRIC", "KNN", "CONTEXT", "KNN_AND_CONTEXT")


def silo(*arguments):
    return service.run(*arguments, address=ADDRESS)


def add(source):
    silo("source", "create", "--declaration", f"datastore/{source}.toml")
    silo("shard", "add", "--source", source, "--corpus", "work/corpus", "--max-bytes", str(BYTES))


class Client:
    """The services over gRPC."""

    def __init__(self, modules):
        import grpc

        self.common, self.datastore, datastore_grpc, self.generation, generation_grpc, _, _ = modules
        channel = grpc.insecure_channel(ADDRESS)
        grpc.channel_ready_future(channel).result(timeout=20)
        self.store = datastore_grpc.DatastoreServiceStub(channel)
        self.generate = generation_grpc.GenerationServiceStub(channel)

    def retrieval(self, mode):
        return self.common.Retrieval(mode=self.common.RetrievalMode.Value(mode))

    def scores(self, text):
        out = {}
        for mode in MODES:
            answer = self.generate.Score(self.generation.ScoreRequest(text=text, retrieval=self.retrieval(mode)))
            out[mode] = [t.log_probability.hex() for t in answer.tokens]
        return out

    def stream(self, mode, n, seed=1, prompt="The file"):
        sampling = self.generation.Sampling(temperature=1.0, seed=seed)
        request = self.generation.GenerateRequest(text=prompt, max_new_tokens=n, sampling=sampling, retrieval=self.retrieval(mode))
        return self.generate.GenerateStream(request)

    def root(self):
        return self.store.GetStore(self.datastore.GetStoreRequest()).root

    def shard_of(self, source):
        return next(s.id for s in self.store.ListShards(self.datastore.ListShardsRequest(source=source)).shards)


def follow(stream, started, ended, i, reason_of):
    """Reads a stream to its end."""
    for n, chunk in enumerate(stream):
        if n == 3:
            started[i].set()
        if chunk.HasField("finished"):
            ended[i] = (time.monotonic(), reason_of(chunk.finished.reason), n)


def remove_under_streams(client):
    started, ended = [threading.Event() for _ in range(STREAMS)], [None] * STREAMS
    reason = client.generation.FinishReason.Name
    modes = [m for m in MODES if m != "PARAMETRIC"]
    threads = []
    for i in range(STREAMS):
        stream = client.stream(modes[i % len(modes)], 800, seed=i)
        threads.append(threading.Thread(target=follow, args=(stream, started, ended, i, reason)))
        threads[-1].start()
    for event in started:
        if not event.wait(60):
            sys.exit("a stream gave nothing within a minute")
    begun = time.monotonic()
    removal = client.store.RemoveShard(client.datastore.RemoveShardRequest(id=client.shard_of(REMOVED))).removal
    answered = time.monotonic()
    for thread in threads:
        thread.join()
    return removal, {
        "answered_ms": (answered - begun) * 1000,
        "durable_ms": removal.durable_ms,
        "effective_new_ms": removal.effective_ms,
        "streams": [{"ended_after_ms": (at - begun) * 1000, "reason": why, "tokens": n} for at, why, n in ended],
    }


def place_of_one_who_hung_up(client):
    """With one place: from the end of a client to the first token of the next, less what a first token takes anyway."""
    first = []
    for i in range(12):
        begun = time.monotonic()
        stream = client.stream("KNN", 1, seed=i)
        next(iter(stream))
        first.append((time.monotonic() - begun) * 1000)
    after = []
    for i in range(20):
        running = client.stream("KNN", 800, seed=i)
        reader = iter(running)
        for _ in range(5):
            next(reader)
        begun = time.monotonic()
        running.cancel()
        stream = client.stream("KNN", 1, seed=i)
        next(iter(stream))
        after.append((time.monotonic() - begun) * 1000)
    first.sort()
    after.sort()
    median = first[len(first) // 2]
    return {"first_token_ms": {"median": median, "max": first[-1]}, "first_token_after_a_hang_up_ms": {"median": after[len(after) // 2], "max": after[-1]}}


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    modules = service.stubs(WORK)
    text = silo("corpus", "text", REMOVED, "--split", "validation", "--max-bytes", "4000", "--corpus", "work/corpus")
    result = service.made("live_removal.py")

    server = service.Server(WORK, "never", ADDRESS)
    client = Client(modules)
    alone = client.scores(text)
    add(KEPT)
    never, root_never = client.scores(text), client.root()
    server.stop()

    server = service.Server(WORK, "with", ADDRESS)
    client = Client(modules)
    add(KEPT)
    add(REMOVED)
    before = client.scores(text)
    removal, latency = remove_under_streams(client)
    after = client.scores(text)
    result |= {
        "kept": KEPT, "removed": REMOVED, "bytes_of_each": BYTES, "scored_tokens": len(before["KNN"]),
        "modes": {m: {
            "changed_by_the_removal": before[m] != after[m],
            "equal_to_never_added": after[m] == never[m],
            "nats_per_token": {"with": -sum(map(float.fromhex, before[m])) / len(before[m]), "after": -sum(map(float.fromhex, after[m])) / len(after[m])},
        } for m in MODES},
        "roots_equal": removal.root_after == root_never == client.root(), "latency": latency,
    }
    client.store.RemoveShard(client.datastore.RemoveShardRequest(id=client.shard_of(KEPT)))
    emptied = client.scores(text)
    result["empty_equals_parametric"] = all(emptied[m] == alone["PARAMETRIC"] for m in MODES)
    server.stop()

    server = service.Server(WORK, "one-place", ADDRESS, [("[engine]\n", "[engine]\nmax_active = 1\n")])
    client = Client(modules)
    add(KEPT)
    result["place_of_one_who_hung_up"] = place_of_one_who_hung_up(client)
    server.stop()

    print(json.dumps(result, indent=1))
    equal = all(m["equal_to_never_added"] for m in result["modes"].values())
    consulted = result["modes"]["KNN"]["changed_by_the_removal"] and result["modes"]["CONTEXT"]["changed_by_the_removal"]
    sys.exit(0 if equal and consulted and result["roots_equal"] and result["empty_equals_parametric"] else 1)


if __name__ == "__main__":
    main()
