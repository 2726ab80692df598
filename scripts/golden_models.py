"""Makes the small random models of crates/model/tests/golden and what Hugging Face transformers computes with them.

Needs: pip install torch transformers safetensors tokenizers gguf numpy
Run:   python3 scripts/golden_models.py crates/model/tests/golden
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = [0, 17, 201, 5, 5, 260, 99, 42, 7, 258, 130, 64, 3, 255, 18, 77, 140, 31, 8, 200]
BASE = dict(
    vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
)
VARIANTS = {
    "mha": dict(num_key_value_heads=4, tie_word_embeddings=False),
    "gqa": dict(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=500.0),
    "llama3": dict(
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
}


def tokenizer() -> Tokenizer:
    """Special token 0, all 256 bytes, a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("Ġ", "o")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    while len(vocab) < BASE["vocab_size"]:
        vocab[f"<|unused{len(vocab)}|>"] = len(vocab)
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.add_special_tokens([k for k in vocab if k.startswith("<|")])
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    return t


def expected(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Logits, and the hidden states of the three key sites."""
    taps = {}
    last = model.model.layers[-1]
    last.post_attention_layernorm.register_forward_hook(lambda m, i, o: taps.update({"last-ffn-input": o}))
    last.register_forward_hook(lambda m, i, o: taps.update({"last-block-output": o[0] if isinstance(o, tuple) else o}))
    model.model.norm.register_forward_hook(lambda m, i, o: taps.update({"final-norm": o}))
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    out = {k: v.reshape(len(TOKENS), -1).contiguous() for k, v in taps.items()}
    return out | {"logits": logits.contiguous(), "tokens": torch.tensor(TOKENS, dtype=torch.int64)}


def write_gguf(path: pathlib.Path, model: LlamaForCausalLM, t: Tokenizer) -> None:
    """As llama.cpp's converter does it: query and key rows reordered for rotation of neighbouring pairs."""
    c, state = model.config, {k: v.numpy() for k, v in model.state_dict().items()}
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("golden"), w.add_context_length(c.max_position_embeddings), w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers), w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads), w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps), w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    vocab = sorted(t.get_vocab().items(), key=lambda kv: kv[1])
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("gpt-2")
    w.add_token_list([k for k, _ in vocab]), w.add_token_types([3 if k.startswith("<|") else 1 for k, _ in vocab])
    w.add_token_merges([" ".join(m) for m in json.loads(t.to_str())["model"]["merges"]])
    w.add_bos_token_id(0), w.add_eos_token_id(0), w.add_add_bos_token(True)

    def interleave(m: np.ndarray, heads: int) -> np.ndarray:
        return m.reshape(heads, 2, m.shape[0] // heads // 2, m.shape[1]).swapaxes(1, 2).reshape(m.shape)

    names = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    w.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    w.add_tensor("output_norm.weight", state["model.norm.weight"])
    if not c.tie_word_embeddings:
        w.add_tensor("output.weight", state["lm_head.weight"])
    for i in range(c.num_hidden_layers):
        for hf, name in names.items():
            m = state[f"model.layers.{i}.{hf}.weight"]
            heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}.get(name)
            w.add_tensor(f"blk.{i}.{name}.weight", np.ascontiguousarray(interleave(m, heads) if heads else m))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def main(root: pathlib.Path) -> None:
    t = tokenizer()
    for seed, (name, changes) in enumerate(VARIANTS.items()):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**BASE | changes)).float().eval()
        for p in model.parameters():  # larger than the initial values, so that attention is far from uniform
            p.data = torch.randn_like(p) * (0.3 if p.dim() == 2 else 0.2) + (1.0 if p.dim() == 1 else 0.0)
            if name == "llama3":  # stored as bf16 in two shards; the rotary frequencies stay float32
                p.data = p.data.bfloat16().float()
        out = root / name
        out.mkdir(parents=True, exist_ok=True)
        save_file(expected(model), root / f"{name}.expected.safetensors")
        if name == "gqa":
            write_gguf(root / "gqa.gguf", model, t)
        dtype = torch.bfloat16 if name == "llama3" else torch.float32
        model.to(dtype).save_pretrained(out, max_shard_size="60KB" if name == "llama3" else "5GB")
        (out / "generation_config.json").unlink(missing_ok=True)
        t.save(str(out / "tokenizer.json"))


main(pathlib.Path(sys.argv[1]))
