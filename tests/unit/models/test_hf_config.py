import json

import pytest

from models.config import RopeScaling
from models.hf_config import config_from_hf, config_to_hf
from tests.tiny import tiny_config

SCALING = RopeScaling(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
LLAMA_3_2 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
}
STRETCH = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
OLDER_STRETCH = {"type" if key == "rope_type" else key: v for key, v in STRETCH.items()}


def read(**changes):
    return config_from_hf(LLAMA_3_2 | changes, origin="config.json")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {**STRETCH, "rope_theta": 5e5}},
        {"rope_scaling": STRETCH, "rope_theta": 5e5},
        {"rope_scaling": OLDER_STRETCH, "rope_theta": 5e5},
        {"rope_scaling": STRETCH, "rope_theta": 5e5, "rope_parameters": {**STRETCH}},
    ],
    ids=["transformers 5", "transformers 4", "before 4.43", "both"],
)
def test_llama_3_rope_is_read_in_every_spelling(rope):
    config = read(**rope)
    assert (config.rope_theta, config.rope_scaling) == (5e5, SCALING)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
        {"rope_theta": 100000, "rope_scaling": None},
        {"rope_theta": 100000, "rope_scaling": None, "rope_interleaved": False},
    ],
    ids=["transformers 5", "transformers 4", "smollm2"],
)
def test_plain_rope_is_read_in_every_spelling(rope):
    config = read(**rope)
    assert (config.rope_theta, config.rope_scaling) == (1e5, None)


def test_absent_keys_have_the_defaults_of_transformers():
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    values = {key: LLAMA_3_2[key] for key in (*required, "num_attention_heads", "model_type")}
    config = config_from_hf(values, origin="config.json")
    assert config.rms_norm_eps == 1e-6
    assert config.rope_theta == 10000.0
    assert config.max_position_embeddings == 2048
    assert config.kv_heads == 32
    assert not config.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'; only 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not 'silu'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1, not 0"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config is \{'bits': 4\}"),
        ({"hidden_size": None, "vocab_size": None}, "vocab_size, hidden_size missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'; only"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'; only"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8}},
            "rope_type 'llama3' needs low_freq_factor, high",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_theta": [1]}, "float.. argument must be"),
        ({"num_key_value_heads": 5}, r"model\.num_attention_heads 32 must be a multiple of .* 5"),
        ({"rope_parameters": {**STRETCH, "factor": 0}}, r"model\.rope_scaling\.factor must be"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'; a whole number"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_in_one_line_with_key_and_value(changes, message):
    with pytest.raises(ValueError, match=f"^config.json: {message}") as raised:
        read(**changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(rope_theta=5e5, rope_scaling=SCALING),
        tiny_config(head_dim=32, rms_norm_eps=1e-3, attention_bias=True, mlp_bias=True),
        tiny_config(num_key_value_heads=1, tie_word_embeddings=True),
    ],
    ids=["plain", "llama 3 rope", "wide, biases", "tied"],
)
@pytest.mark.parametrize("dropped", [(), ("rope_parameters",), ("rope_theta", "rope_scaling")])
def test_what_is_written_is_read_back_equal_by_old_and_new_keys(config, dropped):
    values = json.loads(json.dumps(config_to_hf(config, dtype="bfloat16")))
    for key in dropped:
        del values[key]
    back = config_from_hf(values, origin="config.json")
    assert back.head_dim == config.head_width
    assert back.num_key_value_heads == config.kv_heads
    for field in ("rope_theta", "rope_scaling", "rms_norm_eps", "attention_bias", "mlp_bias"):
        assert getattr(back, field) == getattr(config, field)
    assert back.tie_word_embeddings == config.tie_word_embeddings


def test_special_tokens_are_written_even_when_there_are_none():
    values = config_to_hf(tiny_config(), dtype="float32")
    assert values["eos_token_id"] is None
    assert values["bos_token_id"] is None
    assert config_to_hf(tiny_config(), dtype="float32", eos_token_id=7)["eos_token_id"] == 7
