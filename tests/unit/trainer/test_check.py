from pathlib import Path

import pytest
import torch

from configs.load import load
from models.hf import save_pretrained
from tests.e2e.runs import write_config
from tests.tiny import tiny_config, tiny_llama
from trainer.check import check_report, sharding_of, workload_of
from trainer.config import PretrainConfig


def report(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: str, ranks: int = 1) -> str:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    return check_report(load(PretrainConfig, write_config(folder), list(changes)))


def test_the_report_says_memory_flops_and_communication(tmp_path, monkeypatch):
    text = report(tmp_path, monkeypatch, ranks=2)
    for part in ("parameters:", "peak memory estimate of one rank of 2", "exits and weights"):
        assert part in text
    moments = text[text.index("exits and weights") :].splitlines()[1:6]
    assert [line.split()[0] for line in moments] == ["0", "2", "5", "8", "11"]
    # 4 layers: at full depth root 2, and 3 for each visited layer, in each of 2 microbatches.
    collectives = [float(line.split()[6]) for line in moments]
    assert all(20 < count <= 28 for count in collectives)
    assert collectives[0] < 28  # p^4 at the last layer


def test_one_rank_moves_nothing_and_two_do(tmp_path, monkeypatch):
    assert "each rank sends 0 GiB in 0 collectives" in report(tmp_path, monkeypatch)
    assert "each rank sends 0 GiB" not in report(tmp_path, monkeypatch, ranks=2)


def test_recomputation_and_background_saving_are_named(tmp_path, monkeypatch):
    plain = report(tmp_path, monkeypatch)
    text = report(tmp_path, monkeypatch, "parallel.recompute=true", "checkpoint.asynchronous=true")
    assert "host memory besides, for background saves" in text
    assert "host memory besides" not in plain
    assert "and 0 recomputed" in plain
    assert "and 0 recomputed" not in text


def test_a_shard_size_that_does_not_divide_the_ranks_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="shard_size 3 must divide the number of ranks 4"):
        report(tmp_path, monkeypatch, "parallel.fsdp.shard_size=3", ranks=4)


def test_files_that_are_not_here_are_named(tmp_path, monkeypatch):
    assert "not here" not in report(tmp_path, monkeypatch)
    source = "data.source={stdlib: null, files: {path: nowhere/texts}}"
    text = report(
        tmp_path, monkeypatch, source, "data.tokenizer={sentencepiece: null, path: nowhere.model}"
    )
    line = "data.source.files.path=nowhere/texts, data.tokenizer.path=nowhere.model"
    assert text.endswith(f"not here, and the run would stop without: {line}\n")
    mixed = "{here: {weight: 1, stdlib: {}}, away: {weight: 1, files: {path: nowhere}}}"
    changes = (
        "data.source=null",
        f"data.mixture={mixed}",
        "data.tokenizer={sentencepiece: null, path: o/name}",
    )
    assert "without: data.mixture.away.files.path=nowhere\n" in report(
        tmp_path, monkeypatch, *changes
    )


def test_precision_and_sharding_reach_the_cost_model(tmp_path):
    config = load(
        PretrainConfig,
        write_config(tmp_path),
        ["parallel.precision=bfloat16", "parallel.fsdp.shard_size=2"],
    )
    sharding = sharding_of(config.parallel, 8)
    assert (sharding.shards, sharding.copies) == (2, 4)
    assert (sharding.gather_width, sharding.reduce_width) == (2, 4)


def test_accumulation_packing_and_chunks_reach_the_memory_model(tmp_path):
    config = load(
        PretrainConfig,
        write_config(tmp_path),
        [
            "parallel={precision: bfloat16, device: cpu}",
            "data.cross_document_attention=false",
            "loss_chunk_tokens=5",
        ],
    )
    assert config.model is not None
    work = workload_of(config, config.model, 2)
    assert (work.chunk_tokens, work.accumulate, work.wide_attention) == (5, True, True)
    assert not workload_of(config, config.model, 4).accumulate


def _base(folder: Path) -> list[str]:
    config = tiny_config(vocab_size=320, hidden_size=32, intermediate_size=64)
    weights = tiny_llama(config, dtype=torch.float32).named_parameters()
    save_pretrained(weights, config, folder / "hf", dtype=torch.float32)
    return ["model=null", f"init_from={folder / 'hf'}"]


def test_the_report_says_what_adapters_and_frozen_parts_spare(tmp_path, monkeypatch):
    base = _base(tmp_path)
    lora = ["lora.rank=2", "optim.groups.b={match: '*.lora_B.weight', lr_scale: 16.0}"]
    texts = [
        report(tmp_path, monkeypatch, *base, *changes, ranks=2)
        for changes in ([], lora, ["freeze.layers_from=2"])
    ]
    whole, adapted, _ = texts
    adapters = 4 * 2 * ((32 + 32) + (32 + 16))
    assert f"trained: {adapters:,}, the others stay as they are" in adapted
    assert f"learning rate x 16, weight decay 0.1: {4 * 2 * (32 + 16):,} parameters" in adapted
    assert "trained:" not in whole
    for figure in ("weights and moments, always", "gradients of the own shard"):
        sizes = [float(text.split(f"{figure}: ")[1].split()[0]) for text in texts]
        assert sizes[1] <= sizes[2] <= sizes[0]
    flops = [float(text.split("whole run: ")[1].split()[0]) for text in texts]
    assert flops[1] < 0.8 * flops[0]
    assert flops[2] < 0.9 * flops[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["lora.rank=2"], "lora needs init_from"),
        (["freeze.layers_from=2"], "freeze needs init_from"),
        (["lora.rank=2", "freeze.layers_from=2"], "lora and freeze are both given"),
    ],
)
def test_freezing_without_a_base_is_refused(tmp_path, monkeypatch, changes, message):
    with pytest.raises(ValueError, match=message):
        report(tmp_path, monkeypatch, *changes)
