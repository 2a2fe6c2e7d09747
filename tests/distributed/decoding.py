"""Models to decode on several ranks, and every way of decoding them."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipelines.tokenize import train_sentencepiece
from inference.adaptive import adaptive
from inference.batch import BatchSettings, generate_batch
from inference.controller import Controller
from inference.generate import autoregressive
from inference.generation import Decode, Generation, Settings
from inference.ranks import Ranks, load_on_ranks
from inference.sample import SamplingConfig
from inference.self_speculative import self_speculative
from models.config import LlamaConfig
from models.hf import read_config, save_pretrained
from models.hf_config import config_to_hf
from models.llama import Llama
from models.plan import full, without
from parallel.checkpointer import Checkpointer
from parallel.config import ParallelConfig, ZeroConfig
from parallel.share import share_numbers
from parallel.world import start
from tests.distributed.recipe import engine_steps, make_engine
from tests.tiny import tiny_config, tiny_llama

WARM = SamplingConfig(temperature=1.1, top_k=40, top_p=0.95)
CONFIGS = {
    "grouped": tiny_config(),
    "tied_uneven": tiny_config(tie_word_embeddings=True, vocab_size=97, intermediate_size=130),
    "biased": tiny_config(
        attention_bias=True, mlp_bias=True, head_dim=24, num_key_value_heads=4, vocab_size=300
    ),
}
PROMPTS = [[1, 2, 3, 50, 95], list(range(40, 60)), [5]]


def quiet_llama(config: LlamaConfig) -> Llama:
    """Return a model whose upper layers say little, so that drafts are accepted now and then."""
    model = tiny_llama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        for layer in range(2, config.num_hidden_layers):
            block = model.layers[str(layer)]
            block.self_attn.o_proj.weight.mul_(0.2)
            block.mlp.down_proj.weight.mul_(0.2)
    return model


def export(model: Llama, folder: Path) -> str:
    named = [(name, p.detach()) for name, p in model.named_parameters()]
    save_pretrained(named, model.config, folder, dtype=torch.float64, max_shard_bytes=10**5)
    return str(folder)


def on_this_rank(
    folder: str, split: str = "tensor", *, is_checkpoint: bool = False, reshard: bool = True
) -> Llama:
    """On a rank: its part of the model in a folder, in float64."""
    ranks = Ranks(start(device="cpu"), split, reshard)  # type: ignore[arg-type]
    config = read_config(Path(folder) / "model" if is_checkpoint else folder)
    return load_on_ranks(
        config, folder, is_checkpoint=is_checkpoint, dtype=torch.float64, ranks=ranks
    )


def decoded(model: Llama, settings: Settings, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the tokens of every way of decoding these prompts, alone and in batches."""
    depth = model.config.num_hidden_layers
    drafting = partial(self_speculative, model, num_speculations=3, settings=settings)
    ways: list[Decode] = [
        partial(autoregressive, model, plan=full(depth), settings=settings),
        partial(drafting, draft=full(2), draft_confidence=0.3),
        partial(drafting, draft=without(depth, attn=[1], ffn=[2])),
    ]
    if settings.sampling.is_greedy:  # else what was timed decides which numbers are drawn
        controller = Controller(depth, most=4, share=partial(share_numbers, model))
        ways.append(partial(adaptive, model, controller=controller, settings=settings))
    found = [Generation(tuple(way(prompt))).token_ids for way in ways for prompt in prompts]
    for batch in (BatchSettings(rows=2), drafting_batch(3)):
        each = generate_batch(model, prompts, batch=batch, settings=settings)
        found += [generation.token_ids for generation in each]
    return found


def drafting_batch(rows: int) -> BatchSettings:
    return BatchSettings(rows=rows, exit_layer=2, num_speculations=3)


def alone(model: Llama, settings: Settings, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the tokens of plain decoding, one prompt after another."""
    plan = full(model.config.num_hidden_layers)
    return [
        Generation(tuple(autoregressive(model, p, plan=plan, settings=settings))).token_ids
        for p in prompts
    ]


def train_and_save(run: str, tokenizer: str, config: LlamaConfig, zero: bool) -> None:
    """On a rank: train a step by FSDP2, or by DeepSpeed's stage 3, and save a checkpoint."""
    world = start(device="cpu")
    parallel = ParallelConfig(zero=ZeroConfig(stage=3)) if zero else ParallelConfig()
    engine = make_engine(config, parallel, world, torch.float32)
    engine_steps(engine, world, steps=[0])
    saver = Checkpointer(Path(run) / "checkpoints", engine, keep_last=1, asynchronous=False)

    def write_extras(folder: Path) -> None:
        described = config_to_hf(config, dtype="float32")
        (folder / "model" / "config.json").write_text(json.dumps(described))
        shutil.copytree(tokenizer, folder / "tokenizer")

    saver.save(1, {}, write_extras)


class Collectives(TorchDispatchMode):
    """Counts the collectives within it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._opname] += 1
        return func(*args, **(kwargs or {}))


def make_tokenizer(folder: Path) -> str:
    text = "def f(x):\n    return x if x else None  # some words\n\nclass A:\n    pass\n"
    train_sentencepiece([text * 4], 290, folder)
    return str(folder)
