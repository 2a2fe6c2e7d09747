"""A whole model by each kind of kernel, not only by those that this machine prefers."""

import pytest
import torch

from inference.fast import pack as packing
from inference.fast.compiler import library
from inference.fast.convert import quicken
from inference.fast.linear import FastLinear
from inference.fast.structs import Kind
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.self_speculative import self_speculative
from models.plan import full
from tests.tiny import tiny_config, tiny_llama

PROMPT = [3, 14, 15, 92, 65]
CONFIG = tiny_config(
    hidden_size=40, head_dim=12, intermediate_size=50, attention_bias=True, mlp_bias=True
)


@pytest.mark.parametrize("kind", [None, Kind.ROWS_FLOAT, Kind.ROWS_BF16], ids=str)
def test_greedy_tokens_are_those_of_the_plain_model(
    kind: Kind | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is not None and library() is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(packing, "kind_of", lambda *_a, **_k: kind)
    monkeypatch.setattr(FastLinear, "prefers_ours", lambda self, x: kind is not None)
    dtype = torch.bfloat16 if kind is Kind.ROWS_BF16 else torch.float32
    settings = Settings(max_new_tokens=16 if dtype == torch.float32 else 2)
    expected = _ids(autoregressive(_model(dtype), PROMPT, plan=full(4), settings=settings))
    fast = quicken(_model(dtype))
    assert _ids(autoregressive(fast, PROMPT, plan=full(4), settings=settings)) == expected
    rounds = self_speculative(fast, PROMPT, draft=full(2), num_speculations=3, settings=settings)
    assert _ids(rounds) == expected


def _model(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    return tiny_llama(CONFIG, dtype=dtype).eval()


def _ids(rounds: object) -> list[int]:
    return Generation(tuple(rounds)).token_ids  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_drafts_cannot_change_a_token(dtype: torch.dtype) -> None:
    """With our kernels a position's numbers do not depend on how many are read with it."""
    fast = quicken(_model(dtype))
    if not fast.layers["0"].gate_up_proj.is_in_tiles:
        pytest.skip("needs a compiler and a matrix unit")
    settings = Settings(max_new_tokens=100)
    expected = _ids(autoregressive(fast, PROMPT, plan=full(4), settings=settings))
    for drafts in (1, 4, 15):
        rounds = self_speculative(
            fast, PROMPT, draft=full(2), num_speculations=drafts, settings=settings
        )
        assert _ids(rounds) == expected
