"""DeepSpeed as other people use it: transformers' Llama, their optimizer, `engine.save_checkpoint`.

DeepSpeed is imported in the ranks only: the process that pytest runs in stays free of it.
"""

import os
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from models.config import LlamaConfig as Config
from models.hf_config import config_to_hf
from parallel.flat_shard import FlatShard
from tests.distributed.recipe import whole

Kind = tuple[int, bool]
"""Stage, and whether in bfloat16."""
KINDS: list[Kind] = [(stage, half) for stage in (1, 2, 3) for half in (False, True)]
STEPS = 2


class Wrapped(nn.Module):
    """What a user's own module around the model makes of the names: `module.` before each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.module(input_ids=ids, labels=ids).loss


def make_plain_engine(
    config: Config, kind: Kind, *, seed: int, wrapped: bool = False, **settings: Any
) -> Any:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed = import_module("deepspeed")
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    stage, half = kind
    torch.manual_seed(seed)
    values = config_to_hf(config, dtype="float32")
    del values["architectures"], values["model_type"]
    plain = LlamaForCausalLM(LlamaConfig(**values))
    model = Wrapped(plain) if wrapped else plain
    model.to(torch.bfloat16 if half else torch.float32)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed}]
    described = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": half},
        "data_types": {"grad_accum_dtype": "fp32"},
        **settings,
    }
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=described)
    return engine


def train_plainly(engine: Any, steps: int = STEPS) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
        ids = torch.randint(0, 96, (2, 8), generator=generator)
        is_wrapped = isinstance(engine.module, Wrapped)
        engine.backward(engine(ids) if is_wrapped else engine(input_ids=ids, labels=ids).loss)
        engine.step()


def full_state(engine: Any) -> dict[str, Tensor]:
    """Return masters and moments, put together from where each rank keeps its part."""
    inner = engine.optimizer.optimizer.state
    state = {}
    for full_name, parameter in engine.module.named_parameters():
        name = full_name.removeprefix("module.")
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        group, offset, count, start = _place(engine.optimizer, parameter)
        master = _masters(engine.optimizer)[group]
        flats = {name: master.detach()}
        flats |= {f"{key}.{name}": inner[master][key] for key in ("exp_avg", "exp_avg_sq")}
        for key, flat in flats.items():
            state[key] = whole(FlatShard(flat[offset : offset + count], shape, start)).clone()
    return state


def _masters(zero: Any) -> list[Tensor]:
    names = "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"
    last = "single_partition_of_fp32_groups"
    return next(getattr(zero, name) for name in (*names, last) if hasattr(zero, name))


def _place(zero: Any, parameter: Any) -> tuple[int, int, int, int]:
    """Return group, first element in the rank's part of it, elements, and the first's index."""
    if hasattr(parameter, "ds_id"):
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        start = dist.get_rank() * size
        return group, offset, max(0, min(size, parameter.ds_numel - start)), start
    link = parameter._hp_mapping
    if link is None:
        return 0, 0, 0, 0
    there, here = link.lp_fragment_address, link.hp_fragment_address
    return link.param_group_index, here.start, here.numel, there.start


def inner_steps(engine: Any) -> list[float]:
    """Return the steps that Adam counts, one for each flat group of this rank."""
    return [float(state["step"]) for state in engine.optimizer.optimizer.state.values()]
