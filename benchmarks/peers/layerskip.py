"""`PYTHON layerskip.py CHECKOUT MODEL THREADS`, run by the Python of facebookresearch/LayerSkip.

It decodes when told to, by the lines of its input, and answers each with a line of JSON. A request
is `{"prompts": [[ids]], "new_tokens": n, "exit_layer": e or -1, "drafts": d}`.
"""

import importlib
import json
import sys
from typing import Any

import torch
from transformers import LlamaForCausalLM


def main(checkout: str, folder: str, threads: str) -> None:
    """Load the model, say so, and serve requests."""
    sys.path.insert(0, checkout)
    torch.set_num_threads(int(threads))
    model: Any = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16)
    model.eval()
    print(json.dumps({"tokens": 0}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, json.loads(line))), flush=True)


def answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return tokens and mean acceptance of one request."""
    exit_layer = request["exit_layer"]
    config = importlib.import_module("self_speculation.generator_base").GenerationConfig(
        max_steps=request["new_tokens"],
        exit_layer=exit_layer,
        num_speculations=request["drafts"],
        sample=False,
    )
    module, name = (
        ("self_speculation_generator", "SelfSpeculativeGenerationStrategy")
        if exit_layer > 0
        else ("autoregressive_generator", "AutoRegressiveGenerationStrategy")
    )
    strategy = getattr(importlib.import_module(f"self_speculation.{module}"), name)()
    with torch.inference_mode():
        made = [
            strategy.generate_token_ids(model, prompt, [-1], config)
            for prompt in request["prompts"]
        ]
    rates = [each.acceptance_rate or 0.0 for each in made]
    tokens = sum(len(each.predicted_tokens) for each in made)
    return {"tokens": tokens, "acceptance": sum(rates) / len(rates)}


if __name__ == "__main__":
    main(*sys.argv[1:4])
