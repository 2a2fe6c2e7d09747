from dataclasses import replace

import pytest

from models.activations import layer_activation_bytes
from models.flops import num_parameters
from parallel.cost import Sharding
from parallel.memory import (
    Workload,
    bytes_per_logit,
    gradient_bytes,
    rank_memory,
    shard_parameters,
    staged_bytes,
    state_bytes,
)
from tests.tiny import tiny_config

CONFIG = tiny_config()
WORK = Workload(rows=2, seq_len=16, chunk_tokens=8)
PARAMETERS = num_parameters(CONFIG)
TOKENS = WORK.rows * WORK.seq_len


@pytest.mark.parametrize(
    ("method", "bytes_each"),
    # arXiv 1910.02054, figure 1, with N = 4: 2 + 2 + 12 / N, 2 + 14 / N, 16 / N.
    [("zero-1", 7.0), ("zero-2", 5.5), ("zero-3", 4.0), ("fsdp", 4.0)],
)
def test_states_and_gradients_are_those_of_the_zero_paper(method, bytes_each):
    sharding = Sharding(ranks=4, method=method, gather_width=2, reduce_width=2)
    if method == "fsdp":
        sharding = replace(sharding, reduce_width=4)  # 12 and 4 bytes, all float32
    held = state_bytes(CONFIG, sharding) + gradient_bytes(CONFIG, sharding)
    assert held == bytes_each * PARAMETERS


def test_zero_has_masters_besides_float32_weights_too():
    assert state_bytes(CONFIG, Sharding(ranks=4, method="zero-2")) == (4 + 3) * PARAMETERS
    assert state_bytes(CONFIG, Sharding(ranks=4, method="zero-3")) == (1 + 3) * PARAMETERS


def test_hybrid_sharding_holds_a_shard_of_its_group():
    hybrid = Sharding(ranks=8, shard_ranks=2)
    assert shard_parameters(CONFIG, 2) == PARAMETERS // 2
    assert state_bytes(CONFIG, hybrid) == staged_bytes(CONFIG, hybrid) == 12 * PARAMETERS // 2


def test_recomputation_keeps_the_inputs_of_layers_and_one_layer():
    kept = rank_memory(CONFIG, Sharding(ranks=2), WORK)
    again = rank_memory(CONFIG, Sharding(ranks=2), replace(WORK, recompute=True))
    layer = TOKENS * layer_activation_bytes(CONFIG, width=4)
    inputs = TOKENS * CONFIG.hidden_size * 4
    assert kept.activations - again.activations == CONFIG.num_hidden_layers * (layer - inputs)
    assert again.backward - again.activations > kept.backward - kept.activations + layer


def test_only_one_chunk_of_logits_is_alive():
    one, four = (
        rank_memory(CONFIG, Sharding(ranks=2), replace(WORK, chunk_tokens=n)) for n in (8, 32)
    )
    assert four.loss - one.loss == 24 * CONFIG.vocab_size * bytes_per_logit(4)
    assert (bytes_per_logit(4), bytes_per_logit(2)) == (4, 6)


def test_gathered_layers_and_waiting_gradients_are_counted():
    sharding = Sharding(ranks=4)
    base = rank_memory(CONFIG, sharding, WORK)
    stay = rank_memory(CONFIG, replace(sharding, reshard_after_forward=False), WORK)
    assert stay.gathered == 4 * PARAMETERS > base.gathered
    late = replace(sharding, reduce_every_microbatch=False)
    assert gradient_bytes(CONFIG, late) - base.gradients == 4 * PARAMETERS
    several = rank_memory(CONFIG, sharding, replace(WORK, accumulate=True))
    assert several.backward - base.backward == base.gradients
    assert base.total == base.states + max(base.loss, base.backward, base.reduction)


@pytest.mark.parametrize(("width", "copies"), [(4, 0), (2, 2)])
def test_one_rank_computes_on_a_copy_unless_the_type_is_the_same(width, copies):
    memory = rank_memory(CONFIG, Sharding(ranks=1, gather_width=width), WORK)
    assert memory.gathered == copies * PARAMETERS
    assert memory.reduction == 4 * PARAMETERS + 2 * memory.gathered


def test_the_optimizer_alone_is_the_peak_of_a_small_batch():
    tiny = rank_memory(CONFIG, Sharding(ranks=1), Workload(rows=1, seq_len=1, chunk_tokens=1))
    assert tiny.total == 16 * PARAMETERS
