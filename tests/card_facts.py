"""Facts of a card as a run of the paper's recipe would give them, to be changed in tests."""

from dataclasses import replace
from typing import Any

from inference.card.facts import ExitFigures, Facts, RunFacts, Tuned, Validation
from inference.measure.intervals import Interval
from tests.tiny import tiny_config

CONFIG: dict[str, Any] = {
    "steps": 30,
    "seed": 7,
    "init_from": None,
    "data": {
        "source": None,
        "mixture": {
            "code": {"weight": 3.0, "stdlib": {"max_megabytes": 0.5}, "files": None, "hub": None},
            "web": {
                "weight": 1.0,
                "stdlib": None,
                "files": None,
                "hub": {"name": "owner/web", "config": "sample", "split": "train"},
            },
        },
        "tokenizer": {"sentencepiece": {"vocab_size": 1024}, "path": None},
        "seq_len": 64,
        "valid_fraction": 0.1,
        "cross_document_attention": False,
    },
    "batch": {"global_size": 16, "micro_size": 4},
    "optim": {"lr": 0.003, "betas": [0.9, 0.95], "weight_decay": 0.1, "clip_norm": 1.0},
    "schedule": {"kind": "cosine", "warmup_steps": 5, "min_ratio": 0.1},
    "layer_dropout": {"max_prob": 0.2, "curve": "exp", "over_time": "exp"},
    "exit_loss": {
        "e_scale": 0.2,
        "curriculum": "rotational",
        "rotation": 3,
        "include_last": True,
    },
    "parallel": {"fsdp": None, "zero": {"stage": 3}, "precision": "bfloat16"},
}


def validation(*agreements: float) -> Validation:
    return Validation(
        step=30,
        tokens=2048,
        exits=tuple(
            ExitFigures(exit_layer=e, loss=3.0 - e / 10, perplexity=20.0 - e, agreement=same)
            for e, same in enumerate((*agreements, 1.0), start=1)
        ),
    )


def run_facts(**changes: Any) -> RunFacts:
    facts = RunFacts(
        config=CONFIG,
        step=30,
        tokens=30720,
        ranks=2,
        seconds=6.43,
        commit="48009173bc79ea43468bb0c2402a30e6269dfc0d",
        is_changed=False,
        versions={"torch": "2.13.0"},
        validation=validation(0.5, 0.8, 0.9),
    )
    return replace(facts, **changes)


def facts(**changes: Any) -> Facts:
    found = Facts(
        folder="runs/mine_hf",
        model=tiny_config(),
        dtype="float32",
        source="runs/mine",
        base_model=None,
        license=None,
        run=run_facts(),
        tuned=None,
    )
    return replace(found, **changes)


def tuned(**changes: Any) -> Tuned:
    found = Tuned(
        settings=("strategy=self_speculative", "exit_layer=2", "num_speculations=4"),
        strategy="self_speculative",
        exit_layer=2,
        num_speculations=4,
        acceptance=Interval(0.75, 0.7, 0.8),
        speedup=Interval(1.5, 1.4, 1.6),
        speed=Interval(3000.0, 2900.0, 3100.0),
        base_speed=Interval(2000.0, 1900.0, 2100.0),
        prompts="prompts.txt",
        num_prompts=8,
        dtype="float32",
        device="cpu",
    )
    return replace(found, **changes)
