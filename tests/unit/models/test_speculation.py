import pytest

from models.flops import layer_parameters
from models.speculation import expected_speedup
from tests.tiny import tiny_config


def read_by_hand(layers: int, exit_layer: int, drafts: int, layer: int, head: int) -> int:
    """Weights that a round reads, pass by pass."""
    read = 0
    for _ in range(drafts):
        read += exit_layer * layer + head  # a draft
    read += exit_layer * layer  # the last draft goes through the lower layers, too
    return read + (layers - exit_layer) * layer + head  # verification


@pytest.mark.parametrize(("exit_layer", "drafts", "accepted"), [(1, 4, 3), (2, 6, 0), (3, 12, 12)])
def test_the_speedup_is_that_of_the_weights_read(
    exit_layer: int, drafts: int, accepted: int
) -> None:
    config = tiny_config()
    layer, head = layer_parameters(config), config.vocab_size * config.hidden_size
    plain = read_by_hand(4, exit_layer, 0, layer, head)
    assert plain == 4 * layer + head
    ours = read_by_hand(4, exit_layer, drafts, layer, head)
    found = expected_speedup(config, exit_layer, rounds=1, drafted=drafts, accepted=accepted)
    assert found == pytest.approx((accepted + 1) * plain / ours)


def test_rounds_without_drafts_are_plain_steps() -> None:
    assert expected_speedup(tiny_config(), 2, rounds=7, drafted=0, accepted=0) == 1.0


def test_a_tied_head_is_read_all_the_same() -> None:
    tied = tiny_config(tie_word_embeddings=True)
    apart = tiny_config()
    assert expected_speedup(tied, 1, rounds=2, drafted=8, accepted=5) == expected_speedup(
        apart, 1, rounds=2, drafted=8, accepted=5
    )


def test_the_papers_best_case_is_within_reach_of_the_formula() -> None:
    """LayerSkip, table 3: Llama2 7B drafts 12 at exit 8 of 32, 68.9% accepted, 1.86x measured."""
    llama = tiny_config(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    found = expected_speedup(llama, 8, rounds=1, drafted=12, accepted=12 * 0.689)
    assert 1.86 < found < 2.5
