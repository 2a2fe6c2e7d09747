"""A Llama's `config.json` in the words of transformers, read and written as plain data."""

from collections.abc import Mapping
from typing import Any

from models.config import LlamaConfig, RopeScaling

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

OPTIONAL: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,  # not our own default: what transformers means by an absent key
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}

MUST_BE: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "only SwiGLU feed-forward is implemented"),
    "attention_dropout": (0, "attention dropout is not implemented; set it to 0"),
    "quantization_config": (None, "load the weights before quantisation"),
}
"""Keys that may be absent or hold this one value, and what to do otherwise."""


def config_from_hf(values: Mapping[str, Any], *, origin: str) -> LlamaConfig:
    """Return our config from the content of a `config.json`.

    Reads transformers 5's `rope_parameters` and the older `rope_theta` with `rope_scaling`.

    Args:
        values: the parsed file.
        origin: the file or hub id, named in errors.

    Raises:
        ValueError: the model is not a Llama that we run; one line with the key and its value.
    """
    if values.get("model_type") != "llama":
        raise ValueError(
            f"{origin}: model_type is {values.get('model_type')!r}; only 'llama' can be run"
        )
    for key, (allowed, remedy) in MUST_BE.items():
        if values.get(key) not in (None, allowed):
            raise ValueError(f"{origin}: {key} is {values[key]!r}, not {allowed!r}: {remedy}")
    missing = [key for key in REQUIRED if values.get(key) is None]
    if missing:
        raise ValueError(f"{origin}: {', '.join(missing)} missing: not the config of a Llama")
    for key in REQUIRED:
        if not isinstance(values[key], int):
            raise ValueError(f"{origin}: {key} is {values[key]!r}; a whole number is needed")
    fields = {key: values[key] for key in REQUIRED}
    for key, default in OPTIONAL.items():
        value = values.get(key)
        fields[key] = default if value is None else value
    try:
        theta, scaling = _rope_from_hf(values, fields["max_position_embeddings"])
        return LlamaConfig(**fields, rope_theta=theta, rope_scaling=scaling)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: {error}") from None


def _rope_from_hf(values: Mapping[str, Any], context: int) -> tuple[float, RopeScaling | None]:
    """Return the base and the scaling; keys are looked up in transformers' order."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    theta = rope.get("rope_theta", values.get("rope_theta"))
    theta = 10000.0 if theta is None else float(theta)
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1):
        raise ValueError(f"partial_rotary_factor is {partial!r}; only 1.0 can be run")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(
            f"rope_type is {kind!r}; only 'default' and 'llama3' rotary positions can be run"
        )
    absent = [k for k in ("factor", "low_freq_factor", "high_freq_factor") if k not in rope]
    if absent:
        raise ValueError(f"rope_type 'llama3' needs {', '.join(absent)}")
    original = values.get("original_max_position_embeddings") or rope.get(
        "original_max_position_embeddings", context
    )
    return theta, RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(original),
    )


def config_to_hf(
    config: LlamaConfig,
    *,
    dtype: str,
    eos_token_id: int | list[int] | None = None,
    bos_token_id: int | None = None,
) -> dict[str, Any]:
    """Return the content of a `config.json` that transformers 4 and 5 both read.

    Args:
        config: the model.
        dtype: of the stored weights, such as "bfloat16".
        eos_token_id: ends a text; written as null when None, because transformers would put 2.
        bos_token_id: begins a text; likewise, instead of 1.
    """
    scaling = _scaling_to_hf(config.rope_scaling)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **{key: getattr(config, key) for key in (*REQUIRED, *OPTIONAL)},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "rope_parameters": {
            "rope_theta": config.rope_theta,
            **(scaling or {"rope_type": "default"}),
        },
        # What transformers 4 reads instead of rope_parameters and dtype.
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "torch_dtype": dtype,
        "dtype": dtype,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "use_cache": True,
    }


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }
