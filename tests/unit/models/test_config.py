import pytest

from models.config import LlamaConfig, RopeScaling
from tests.tiny import tiny_config


def test_absent_heads_and_head_width_are_derived():
    config = tiny_config(num_key_value_heads=None)
    assert (config.kv_heads, config.head_width) == (4, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 0}, r"model\.num_hidden_layers must be at least 1, got 0"),
        ({"num_key_value_heads": 0}, r"model\.num_key_value_heads must be at least 1, got 0"),
        ({"num_key_value_heads": -2}, r"model\.num_key_value_heads must be at least 1, got -2"),
        ({"num_key_value_heads": 3}, r"num_attention_heads 4 must be a multiple of .* 3"),
        ({"num_hidden_layers": 1001}, r"model\.num_hidden_layers must be at most 1000, got 1001"),
        ({"vocab_size": 2**63}, r"model\.vocab_size must be at most 16777216, got 9223"),
        ({"head_dim": -16}, r"model\.head_dim must be at least 1, got -16"),
        ({"head_dim": 15}, r"model\.head_dim must be even .* got 15"),
        ({"hidden_size": 60}, r"model\.head_dim must be even .* got 15"),
        ({"hidden_size": 66}, r"model\.hidden_size 66 must be a multiple of .* 4"),
        ({"hidden_size": 66, "head_dim": 16}, r"model\.hidden_size 66 must be a multiple of"),
        ({"rope_theta": 0.0}, r"model\.rope_theta must be positive, got 0\.0"),
        ({"rms_norm_eps": -1e-5}, r"model\.rms_norm_eps must be positive, got -1e-05"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_run_is_refused_with_its_key_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"factor": 0.5}, "factor"),
        ({"low_freq_factor": 4.0}, "low_freq_factor"),
        ({"low_freq_factor": 0.0}, "low_freq_factor"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
    ],
    ids=str,
)
def test_a_rope_scaling_that_cannot_run_is_refused(changes, key):
    with pytest.raises(ValueError, match=rf"model\.rope_scaling\.{key} must be"):
        RopeScaling(**{"factor": 8.0, **changes})


def test_a_config_cannot_be_changed():
    config: LlamaConfig = tiny_config()
    with pytest.raises(AttributeError):
        config.hidden_size = 128
