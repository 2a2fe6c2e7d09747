from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.ranks import run_ranks
from tests.tiny import tiny_config, tiny_llama
from trainer.optim import GroupConfig, OptimConfig, build_adamw


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    model = tiny_llama(tiny_config(attention_bias=True))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, rest = build_adamw(model, OptimConfig(lr=1e-3, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert all("norm" in names[p] or names[p].endswith("bias") for p in rest["params"])
    assert not any("norm" in names[p] or names[p].endswith("bias") for p in decayed["params"])
    assert "model.embed_tokens.weight" in {names[p] for p in decayed["params"]}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


def test_tied_embeddings_are_one_parameter() -> None:
    model = tiny_llama(tiny_config(tie_word_embeddings=True))
    groups = build_adamw(model, OptimConfig(lr=1e-3)).param_groups
    optimised = [p for group in groups for p in group["params"]]
    assert len(optimised) == len(set(optimised)) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_llama()
    model.model.embed_tokens.weight.requires_grad_(False)
    groups = build_adamw(model, OptimConfig(lr=1e-3)).param_groups
    optimised = {p for group in groups for p in group["params"]}
    assert model.model.embed_tokens.weight not in optimised


def test_one_step_is_adamw_as_published() -> None:
    model = nn.Linear(2, 1).double()
    config = OptimConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    optimizer = build_adamw(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.tensor([[1.0, 2.0]], dtype=torch.float64)).sum().backward()
    optimizer.step()
    for name, decay in (("weight", 0.5), ("bias", 0.0)):
        parameter = dict(model.named_parameters())[name]
        gradient = parameter.grad
        assert gradient is not None
        # After one step the unbiased means are the gradient and its square.
        expected = before[name] * (1 - 0.1 * decay) - 0.1 * gradient / (gradient.abs() + 1e-3)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.ranks
def test_sharded_parameters_take_the_same_steps_also_where_a_rank_holds_nothing() -> None:
    alone = _train_sharded()
    for shards in run_ranks(_train_sharded, world=2):
        for sharded, plain in zip(shards, alone, strict=True):
            torch.testing.assert_close(sharded, plain, rtol=1e-12, atol=1e-12)


def _train_sharded() -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)).double()
    if dist.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = build_adamw(model, OptimConfig(lr=0.1))
    for _ in range(3):
        model(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    shards: list[Any] = list(model.parameters())
    return [p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach() for p in shards]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "optim.lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "optim.lr must be positive, got nan"),
        ({"lr": 1e-3, "betas": (0.9, 1.0)}, r"optim.betas must both be in \[0, 1\)"),
        ({"lr": 1e-3, "eps": 0.0}, "optim.eps must be positive"),
        ({"lr": 1e-3, "weight_decay": -0.1}, "optim.weight_decay must be >= 0"),
        ({"lr": 1e-3, "clip_norm": 0.0}, "optim.clip_norm must be positive, got 0.0; null does"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        OptimConfig(**settings)


def _scales(config: OptimConfig) -> dict[str, tuple[float, float]]:
    model = tiny_llama()
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[p]: (group["lr_scale"], group["weight_decay"])
        for group in build_adamw(model, config).param_groups
        for p in group["params"]
    }


def test_the_first_group_that_matches_decides() -> None:
    low = GroupConfig(match="model.layers.[01].*", lr_scale=0.1)
    norms = GroupConfig(match="*norm.weight", lr_scale=2.0, weight_decay=0.01)
    scales = _scales(OptimConfig(lr=1e-3, groups={"low": low, "norms": norms}))
    assert scales["model.layers.1.self_attn.q_proj.weight"] == (0.1, 0.1)
    assert scales["model.layers.1.input_layernorm.weight"] == (0.1, 0.0)
    assert scales["model.layers.2.input_layernorm.weight"] == (2.0, 0.01)
    assert scales["model.norm.weight"] == (2.0, 0.01)
    assert scales["lm_head.weight"] == (1.0, 0.1)


def test_layers_learn_the_slower_the_lower_they_are() -> None:
    low = GroupConfig(match="model.layers.0.*", lr_scale=0.5)
    scales = _scales(OptimConfig(lr=1e-3, layer_decay=0.5, groups={"low": low}))
    assert scales["lm_head.weight"][0] == scales["model.norm.weight"][0] == 1.0
    assert scales["model.layers.3.mlp.up_proj.weight"][0] == 0.5
    assert scales["model.layers.0.mlp.up_proj.weight"][0] == 0.5**4 * 0.5
    assert scales["model.embed_tokens.weight"][0] == 0.5**5


@pytest.mark.parametrize("match", ["model.layers.9.*", "model.layers.0.mlp.*", "model.layers.0.*"])
def test_a_pattern_that_decides_nothing_is_named(match: str) -> None:
    low = GroupConfig(match="model.layers.0.*", lr_scale=0.1)
    other = GroupConfig(match=match, lr_scale=0.1)
    with pytest.raises(ValueError, match=r"'model\.layers\..*decides about no parameter"):
        build_adamw(tiny_llama(), OptimConfig(lr=1e-3, groups={"low": low, "other": other}))


@pytest.mark.parametrize(
    "wrong", [{"lr_scale": -1.0}, {"weight_decay": -0.1}, {}], ids=["rate", "decay", "nothing"]
)
def test_a_wrong_group_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"optim\.groups: .*\*norm"):
        GroupConfig(match="*norm*", **wrong)
