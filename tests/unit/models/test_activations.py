import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from models.activations import layer_activation_bytes
from models.config import LlamaConfig
from models.plan import LayerPlan, dropped, full
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama

ROWS, LENGTH = 8, 32


def saved_bytes(
    config: LlamaConfig, plan: LayerPlan, dtype: torch.dtype, packed: bool = False
) -> int:
    """Return what autograd keeps of a forward pass, every storage once, without weights."""
    model = tiny_llama(config, dtype=dtype)
    documents = torch.arange(LENGTH).div(8, rounding_mode="floor").expand(ROWS, -1)
    tokens = make_tokens(
        config, torch.arange(LENGTH)[None], documents=documents if packed else None
    )
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor  # held, so that no other tensor gets its place
        return tensor

    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, tokens, plan)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("packed", [False, True], ids=["causal", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 4, "intermediate_size": 352}, {"head_dim": 32}],
    ids=["grouped", "all heads, wide", "wide heads"],
)
def test_a_layer_keeps_what_is_written_down(
    changes: dict[str, int], dtype: torch.dtype, packed: bool
) -> None:
    config = tiny_config(**changes)
    several = [saved_bytes(config, full(n), dtype, packed) for n in (1, 4)]
    per_token = (several[1] - several[0]) / 3 / (ROWS * LENGTH)
    predicted = layer_activation_bytes(config, width=dtype.itemsize, wide_attention=packed)
    assert per_token == pytest.approx(predicted, rel=0.1)


def test_rows_that_skip_a_layer_keep_nothing_of_it() -> None:
    config = tiny_config()
    whole = saved_bytes(config, full(4), torch.float32)
    half = saved_bytes(config, dropped([torch.arange(ROWS // 2)] * 4), torch.float32)
    none = saved_bytes(config, dropped([torch.arange(0)] * 4), torch.float32)
    assert half - none == pytest.approx((whole - none) / 2, rel=0.1)
