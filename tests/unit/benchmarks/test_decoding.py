from benchmarks.decoding import decode_both_ways
from inference.generation import Settings
from models.plan import full
from tests.tiny import tiny_llama


def test_both_ways_give_every_prompt_the_same_tokens_and_a_speed() -> None:
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    comparison = decode_both_ways(
        tiny_llama(),
        prompts,
        draft=full(2),
        num_speculations=3,
        settings=Settings(max_new_tokens=12),
        repeats=2,
    )
    assert comparison.is_same_output
    assert len(comparison.candidate.repeats) == 2
    assert [len(each.token_ids) for each in comparison.candidate.generations] == [12, 12, 12]
    assert comparison.speedup is not None
    assert comparison.baseline.generations[0].accept_counts == []
    assert comparison.candidate.generations[0].accept_counts != []
