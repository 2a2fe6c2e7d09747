"""Adapters against autograd by hand, and against the package `peft` where it is installed."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from models.hf_config import config_to_hf
from models.lora import LoraConfig, LoraLinear, add_adapters, init_adapters, is_adapter, merged
from models.plan import full
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama

LORA = LoraConfig(rank=3, alpha=12.0, targets=("q_proj", "o_proj", "down_proj"))
IDS = torch.arange(24).view(2, 12) * 3 % 96


def adapted(seed: int = 0, config: LoraConfig = LORA) -> Any:
    """A tiny model whose adapters are both random, so that every gradient counts."""
    model = tiny_llama(tiny_config(num_hidden_layers=2), seed=seed)
    add_adapters(model, config)
    init_adapters(model.named_parameters(), seed=seed)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B.weight"):
            fresh = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(fresh * 0.1)
    return model


def logits_of(model: Any) -> Tensor:
    tokens = make_tokens(model.config, torch.arange(IDS.shape[1])[None])
    return model.unembed(model(IDS, tokens, full(2))[2])


def loss_of(logits: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def test_fresh_adapters_change_nothing() -> None:
    plain, model = (tiny_llama(tiny_config(num_hidden_layers=2)) for _ in range(2))
    add_adapters(model, LORA)
    init_adapters(model.named_parameters(), seed=0)
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=0, atol=1e-12)


def test_only_adapters_get_gradients() -> None:
    model = adapted()
    loss_of(logits_of(model)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == is_adapter(name), name


def test_gradients_are_those_of_a_merged_weight() -> None:
    model, plain = adapted(), tiny_llama(tiny_config(num_hidden_layers=2))
    layer = model.layers["1"].mlp.down_proj
    assert isinstance(layer, LoraLinear)
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            whole = merged(module.weight, module.lora_A.weight, module.lora_B.weight, LORA.scale)
            plain.get_parameter(f"{name}.weight").data.copy_(whole)
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=0, atol=1e-10)
    loss_of(logits_of(model)).backward()
    loss_of(logits_of(plain)).backward()
    of_whole = plain.get_parameter("model.layers.1.mlp.down_proj.weight").grad
    a, b = layer.lora_A.weight, layer.lora_B.weight
    torch.testing.assert_close(a.grad, 4.0 * b.T @ of_whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(b.grad, 4.0 * of_whole @ a.T, rtol=0, atol=1e-10)


def test_values_depend_on_seed_and_name_only() -> None:
    first = {n: p for n, p in adapted().named_parameters() if n.endswith("lora_A.weight")}
    other = {n: p for n, p in adapted(seed=1).named_parameters() if n.endswith("lora_A.weight")}
    few = LoraConfig(rank=3, targets=("down_proj",))
    same = dict(adapted(config=few).named_parameters())
    name = "model.layers.1.mlp.down_proj.lora_A.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])
    # kaiming_uniform_ with a = sqrt(5): uniform within 1 / sqrt(in).
    bound = first[name].shape[1] ** -0.5
    assert 0.8 * bound < float(first[name].abs().max()) <= bound


def test_dropout_is_for_passes_with_gradients() -> None:
    model = adapted(config=LoraConfig(rank=3, dropout=0.5))
    with torch.no_grad():
        assert torch.equal(logits_of(model), logits_of(model))
    assert not torch.equal(logits_of(model), logits_of(model))
    model.eval()
    assert torch.equal(logits_of(model), logits_of(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "lora.rank"),
        ({"alpha": 0.0}, "lora.alpha"),
        ({"dropout": 1.0}, "lora.dropout"),
        ({"targets": ()}, "lora.targets"),
        ({"targets": ("q_proj", "q_proj")}, "lora.targets"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**change)


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_a_step_is_that_of_peft() -> None:
    peft = pytest.importorskip("peft")
    ours = adapted()
    values = config_to_hf(ours.config, dtype="float64")
    theirs = LlamaForCausalLM(HfConfig(**values)).double()
    frozen = {n: p for n, p in ours.named_parameters() if not is_adapter(n)}
    theirs.load_state_dict(frozen, strict=True)
    wrapped = peft.get_peft_model(
        theirs,
        peft.LoraConfig(r=3, lora_alpha=12, target_modules=list(LORA.targets)),
        autocast_adapter_dtype=False,
    )
    mine = {n: p for n, p in ours.named_parameters() if is_adapter(n)}
    named = {
        n.removeprefix("base_model.model.").replace(".default", ""): p
        for n, p in wrapped.named_parameters()
        if p.requires_grad
    }
    assert named.keys() == mine.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(mine[name])
    found, expected = logits_of(ours), wrapped(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for logits, parameters in ((found, mine), (expected, named)):
        loss_of(logits).backward()
        torch.optim.AdamW(parameters.values(), lr=1e-2).step()
    for name, parameter in named.items():
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=0, atol=1e-6)
        torch.testing.assert_close(mine[name], parameter, rtol=0, atol=1e-6)
