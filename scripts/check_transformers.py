#!/usr/bin/env python3
"""Loads a trained model in Hugging Face transformers and compares log p of a text with ours.

    python3 scripts/check_transformers.py models/silo-open-6m

Needs torch, transformers and target/release/silo.
"""
import json
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "The following example shows how to create a table with two columns, and how to delete it again.\n"
directory = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
tokens = [tokenizer.bos_token_id] + tokenizer(TEXT, add_special_tokens=False)["input_ids"]
with torch.no_grad():
    log_p = model(torch.tensor([tokens])).logits.log_softmax(-1)[0]
theirs = sum(log_p[i, token].item() for i, token in enumerate(tokens[1:]))
with tempfile.TemporaryDirectory() as work:
    config = f'{work}/config.toml'
    with open(config, "w") as file:
        file.write(f'[model]\npath = "{directory}"\n[store]\nroot = "{work}/store"\nrecipe = "indexes/exact.toml"\n')
    command = ["target/release/silo", "score", TEXT, "--local", config, "--json"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["log_probability"]
print(f"{type(model).__name__}: transformers {theirs:.5f}, silo {ours:.5f}, difference {abs(theirs - ours):.2e}")
sys.exit(abs(theirs - ours) > 1e-3)
