"""Greedy tokens and speed of `silo serve` beside llama.cpp, on the same GGUF file, in one run.

Needs: pip install llama-cpp-python grpcio grpcio-tools (torch transformers gguf for --transformers), and a server of that file: configs/serve.toml
       with model.path = "work/models/smollm2.gguf", model.require_open_training = false, store.recipe = "indexes/exact.toml", no engine.knn_model and no [engine.knn.gate]
Run:   python3 scripts/compare_llama_cpp.py work/models/smollm2.gguf --threads 2 --transformers > docs/results/llama_cpp.json
"""

import argparse
import json
import pathlib
import statistics
import time

import grpc
from llama_cpp import Llama

import service

PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics state that",
]
N_TOKENS = 64


def timed(f):
    start = time.perf_counter()
    value = f()
    return value, time.perf_counter() - start


def main() -> None:
    a = argparse.ArgumentParser()
    a.add_argument("model"), a.add_argument("--server", default="127.0.0.1:50061"), a.add_argument("--threads", type=int, default=2)
    a.add_argument("--runs", type=int, default=3)
    a.add_argument("--transformers", action="store_true", help="also the same weights, dequantised to float32, in transformers")
    args = a.parse_args()
    _, _, _, pb, rpc, _, _ = service.stubs("work")
    client = rpc.GenerationServiceStub(grpc.insecure_channel(args.server))
    llama = Llama(args.model, n_ctx=1024, n_threads=args.threads, n_threads_batch=args.threads, logits_all=False, verbose=False)

    def ours(ids: list[int], n: int) -> list[tuple[int, list]]:
        request = pb.GenerateRequest(tokens=pb.TokenIds(ids=ids), max_new_tokens=n, sampling=pb.Sampling(temperature=0.0), alternatives=2)
        return [(t.id, [(x.id, x.log_probability) for x in t.alternatives]) for t in client.Generate(request).tokens]

    def theirs(ids: list[int], n: int) -> list[int]:
        llama.reset()
        out = []
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            out.append(token)
            if len(out) == n:
                return out

    def reference():
        """The exact answer: what the file's weights give without rounding activations, as llama.cpp does, to 8 bits."""
        import torch
        from transformers import AutoModelForCausalLM

        path = pathlib.Path(args.model).resolve()
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

        def greedy(ids: list[int], n: int) -> list[int]:
            with torch.no_grad():
                out = model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False, eos_token_id=None)
            return out[0, len(ids):].tolist()

        return greedy

    exact = reference() if args.transformers else None
    results = {"n_tokens": N_TOKENS, "prompts": [], "speed": {}}
    for prompt in PROMPTS:
        ids = llama.tokenize(prompt.encode(), add_bos=False)
        same_ids = list(client.Tokenize(pb.TokenizeRequest(text=prompt)).ids) == ids
        left, right = ours(ids, N_TOKENS), theirs(ids, N_TOKENS)
        first = next((i for i, (l, r) in enumerate(zip(left, right)) if l[0] != r), None)
        gap = None if first is None else left[first][1][0][1] - left[first][1][1][1]
        results["prompts"].append({"prompt": prompt, "same_prompt_tokens": same_ids, "equal_tokens": len(right) if first is None else first,
                                   "gap_of_our_two_best_log_p_there": gap})
        if exact:
            best = exact(ids, N_TOKENS)
            agree = lambda tokens: next((i for i, (l, r) in enumerate(zip(tokens, best)) if l != r), len(best))
            results["prompts"][-1] |= {"silo_equals_transformers_f32": agree([t[0] for t in left]), "llama_cpp_equals_transformers_f32": agree(right)}
    ids = llama.tokenize(PROMPTS[0].encode(), add_bos=False)
    long = (llama.tokenize(" ".join(PROMPTS * 40).encode(), add_bos=False))[:512]
    for name, mine, other in [
        ("decode_tokens_per_s", lambda: ours(ids, 128), lambda: theirs(ids, 128)),
        ("prefill_512_tokens_per_s", lambda: ours(long, 1), lambda: theirs(long, 1)),
    ]:
        n = 128 if name.startswith("decode") else 512
        pairs = [(n / timed(mine)[1], n / timed(other)[1]) for _ in range(args.runs)]
        results["speed"][name] = {"silo": [round(p[0], 1) for p in pairs], "llama_cpp": [round(p[1], 1) for p in pairs],
                                  "ratio_of_medians": round(statistics.median(p[0] for p in pairs) / statistics.median(p[1] for p in pairs), 2)}
    print(json.dumps(results, indent=1))


main()
