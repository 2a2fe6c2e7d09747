import gc

import pytest
import torch
from torch import Tensor, nn

from inference.batch import BatchSettings, generate_batch
from inference.cache import KVCache
from inference.fast.convert import quicken
from inference.fast.layer import FastLayer
from inference.fast.linear import FastLinear
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.row_cache import RowCache, row_tokens
from inference.self_speculative import self_speculative
from models.config import LlamaConfig
from models.execute import run_plan
from models.llama import Llama
from models.plan import LayerPlan, dropped, full, ordered, without
from models.rope import rotary_angles
from models.tokens import Tokens, make_tokens
from tests.tiny import tiny_config, tiny_llama

PROMPT = [3, 14, 15, 92, 65]
PLANS = {
    "full": full(4, exits=[1, 2, 4]),
    "exit": full(2),
    "rest": full(4, start=2),
    "without": without(4, attn=[1], ffn=[2, 3]),
    "ordered": ordered([0, 2, 1, 3], num_layers=4),
    "rows": dropped([None, torch.tensor([0, 2]), torch.tensor([1]), None], exits=[2, 4]),
}
ODD = {"hidden_size": 40, "head_dim": 12, "intermediate_size": 50, "vocab_size": 101}
"""No multiple of what kernels are made for; head_dim is even, as positions ask."""
CONFIGS = {
    "tied": tiny_config(tie_word_embeddings=True),
    "untied": tiny_config(tie_word_embeddings=False),
    "biases": tiny_config(attention_bias=True, mlp_bias=True),
    "odd": tiny_config(**ODD, attention_bias=True, mlp_bias=True),
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def _pair(config: LlamaConfig, dtype: torch.dtype, seed: int = 0) -> tuple[Llama, Llama]:
    """A model, its biases not zero, and the inference form of the same."""
    models = []
    for _ in range(2):
        model = tiny_llama(config, seed=seed, dtype=dtype)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                draws = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(draws * 0.1)
        models.append(model.eval())
    return models[0], quicken(models[1])


def _close(ours: Tensor, plain: Tensor) -> None:
    limit = TOLERANCES[plain.dtype] * max(float(plain.abs().max()), 1.0)
    assert float((ours.double() - plain.double()).abs().max()) <= limit


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_without_a_cache_every_plan_has_the_same_states(
    config: LlamaConfig, plan: LayerPlan, dtype: torch.dtype
) -> None:
    plain, fast = _pair(config, dtype)
    x = torch.randint(config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(0))
    tokens = make_tokens(config, torch.arange(7)[None])
    x = plain.model.embed_tokens(x) if plan.visits[0].layer else x
    theirs, ours = plain(x, tokens, plan), fast(x, tokens, plan)
    assert list(ours) == list(theirs)
    for e in theirs:
        _close(ours[e], theirs[e])
        _close(fast.unembed(ours[e]), plain.unembed(theirs[e]))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["full", "exit", "without", "ordered"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("pieces", [(1, 1, 1), (20, 1, 3), (5, 17, 2), (140, 1, 7)], ids=str)
def test_with_a_cache_pieces_of_any_length_have_the_same_states(
    config: LlamaConfig, name: str, dtype: torch.dtype, pieces: tuple[int, ...]
) -> None:
    plain, fast = _pair(config, dtype)
    total, plan = sum(pieces), PLANS[name]
    ids = torch.randint(config.vocab_size, (1, total), generator=torch.Generator().manual_seed(0))
    results = [_cached(model, ids, pieces, plan) for model in (plain, fast)]
    for e in plan.exits:
        _close(results[1][e], results[0][e])


def _cached(
    model: Llama, ids: Tensor, pieces: tuple[int, ...], plan: LayerPlan
) -> dict[int, Tensor]:
    """Read ids (1, S) piece by piece; return each exit's states (1, S, D)."""
    weight = model.model.embed_tokens.weight
    cache = KVCache(
        model.config,
        layers=range(4),
        max_length=ids.shape[1],
        dtype=weight.dtype,
        device=weight.device,
    )
    cos, sin = rotary_angles(torch.arange(ids.shape[1])[None], model.config)
    found: dict[int, list[Tensor]] = {e: [] for e in plan.exits}
    for end, start in zip(
        torch.tensor(pieces).cumsum(0).tolist(),
        (0, *torch.tensor(pieces).cumsum(0).tolist()),
        strict=False,
    ):
        tokens = Tokens(cos[:, start:end], sin[:, start:end], _mask(start, end), cache)
        for e, h in model(ids[:, start:end], tokens, plan).items():
            found[e].append(h)
    return {e: torch.cat(states, dim=1) for e, states in found.items()}


def _mask(start: int, end: int) -> Tensor | None:
    if not start or end - start == 1:
        return None
    return torch.ones(end - start, end, dtype=torch.bool).tril(start)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_rows_of_a_batch_at_their_own_places_have_the_same_states(dtype: torch.dtype) -> None:
    config = CONFIGS["biases"]
    plain, fast = _pair(config, dtype)
    prompts, starts = [9, 4, 6], torch.tensor([9, 4, 6])
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(config.vocab_size, (1, n), generator=generator) for n in prompts]
    more = torch.randint(config.vocab_size, (3, 5), generator=generator)
    states = []
    for model in (plain, fast):
        cache = RowCache(
            config, layers=range(4), rows=4, max_length=20, dtype=dtype, device=torch.device("cpu")
        )
        cos, sin = rotary_angles(torch.arange(20)[None], config)
        cos, sin = cos.to(dtype), sin.to(dtype)
        for row, some in enumerate(ids):
            positions = torch.arange(some.shape[1])[None]
            writer = cache.writer(positions, first=row + 1, width=some.shape[1])
            model(some, row_tokens(cos, sin, writer), full(4))
        writer = cache.writer(starts[:, None] + torch.arange(5), first=1, width=14)
        states.append(model(more, row_tokens(cos, sin, writer), full(4))[4])
    _close(states[1], states[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_decoding_in_every_way_gives_the_tokens_of_the_plain_model(dtype: torch.dtype) -> None:
    plain, fast = _pair(CONFIGS["untied"], dtype)
    settings = Settings(max_new_tokens=24)
    expected = _tokens(autoregressive(plain, PROMPT, plan=full(4), settings=settings))
    assert _tokens(autoregressive(fast, PROMPT, plan=full(4), settings=settings)) == expected
    for draft in (full(2), without(4, attn=[1], ffn=[2])):
        rounds = self_speculative(fast, PROMPT, draft=draft, num_speculations=4, settings=settings)
        assert _tokens(rounds) == expected
    batch = BatchSettings(rows=2, exit_layer=2, num_speculations=3)
    prompts = [PROMPT, PROMPT[:2], PROMPT]
    found = [g.token_ids for g in generate_batch(fast, prompts, batch=batch, settings=settings)]
    assert found[0] == found[2] == expected


def _tokens(rounds: object) -> list[int]:
    return Generation(tuple(rounds)).token_ids  # type: ignore[arg-type]


def test_in_bfloat16_a_position_is_the_same_bits_alone_and_in_company() -> None:
    _, fast = _pair(CONFIGS["tied"], torch.bfloat16)
    if not fast.layers["0"].qkv_proj.is_in_tiles:
        pytest.skip("needs a compiler and a matrix unit")
    ids = torch.randint(96, (1, 40), generator=torch.Generator().manual_seed(0))
    alone = _cached(fast, ids, (10, *[1] * 30), full(4))[4]
    together = _cached(fast, ids, (10, 7, 1, 5, 17), full(4))[4]
    assert torch.equal(alone, together)


def test_the_head_shares_its_weights_with_a_tied_embedding() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, fast = _pair(CONFIGS["tied"], dtype)
        assert isinstance(fast.lm_head, FastLinear)
        assert fast.model.embed_tokens.weight.data_ptr() == fast.lm_head.packed.data.data_ptr()


def test_the_old_weights_are_freed() -> None:
    model = tiny_llama(tiny_config(), dtype=torch.float32)
    gc.collect()
    before = _bytes_alive()
    fast = quicken(model)
    gc.collect()
    assert _bytes_alive() <= 1.05 * before
    assert all(isinstance(layer, FastLayer) for layer in fast.layers.values())


def _bytes_alive() -> int:
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if isinstance(t, Tensor)
    }
    return sum(storages.values())


class _Doubled(nn.Module):
    """Stands for what follows a product when ranks share it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * 2
        return out


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_modules_around_products_stay(dtype: torch.dtype) -> None:
    config = CONFIGS["biases"]
    plain, fast = (tiny_llama(config, dtype=dtype) for _ in range(2))
    for model in (plain, fast):
        for layer in model.layers.values():
            layer.self_attn.o_proj = _Doubled(layer.self_attn.o_proj)
            layer.mlp.down_proj = _Doubled(layer.mlp.down_proj)
        assert model.lm_head is not None
        model.lm_head = _Doubled(model.lm_head)
    fast = quicken(fast)
    ids = torch.randint(96, (1, 30), generator=torch.Generator().manual_seed(0))
    results = [_cached(model, ids, (20, 1, 9), PLANS["full"])[4] for model in (plain, fast)]
    _close(results[1], results[0])
    _close(fast.unembed(results[0]), plain.unembed(results[0]))


def test_fewer_heads_than_the_config_says_are_taken_from_the_weights() -> None:
    config = tiny_config()
    plain, fast = (tiny_llama(config, dtype=torch.float64) for _ in range(2))
    for model in (plain, fast):
        for layer in model.layers.values():
            _keep_half(layer.self_attn)
    fast = quicken(fast)
    x, tokens = torch.arange(7)[None], make_tokens(config, torch.arange(7)[None])
    _close(fast(x, tokens, full(4))[4], plain(x, tokens, full(4))[4])


def _keep_half(attention: nn.Module) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        old = getattr(attention, name)
        new = nn.Linear(64, old.out_features // 2, bias=False, dtype=torch.float64)
        new.weight.data.copy_(old.weight[: old.out_features // 2])
        setattr(attention, name, new)
    old = attention.o_proj
    attention.o_proj = nn.Linear(32, 64, bias=False, dtype=torch.float64)
    attention.o_proj.weight.data.copy_(old.weight[:, :32])


def test_all_visits_between_exits_are_what_the_executor_makes_of_them() -> None:
    _, fast = _pair(CONFIGS["odd"], torch.bfloat16)
    ids = torch.arange(12)[None]
    ours = _cached(fast, ids, (6, 1, 5), PLANS["full"])
    fast.run_plan = run_plan
    one_by_one = _cached(fast, ids, (6, 1, 5), PLANS["full"])
    assert all(torch.equal(ours[e], one_by_one[e]) for e in ours)


def test_a_full_cache_is_refused_before_anything_is_written() -> None:
    _, fast = _pair(CONFIGS["tied"], torch.float32)
    with pytest.raises(RuntimeError, match="layer 0: 3 positions, cache holds 2"):
        _overfill(fast)


def _overfill(model: Llama) -> None:
    cache = KVCache(
        model.config, layers=range(4), max_length=2, dtype=torch.float32, device=torch.device("cpu")
    )
    cos, sin = rotary_angles(torch.arange(3)[None], model.config)
    model(torch.arange(3)[None], Tokens(cos, sin, None, cache), full(4))


def test_it_cannot_be_cast_any_more() -> None:
    with pytest.raises(RuntimeError, match="cannot be moved or cast"):
        quicken(tiny_llama()).to(torch.float32)


def test_int8_weights_change_the_states_a_little() -> None:
    for dtype, pieces in ((torch.float32, (20, 1, 7)), (torch.bfloat16, (20, 1, 7))):
        plain = tiny_llama(CONFIGS["biases"], dtype=dtype)
        fast = quicken(tiny_llama(CONFIGS["biases"], dtype=dtype), weights="int8")
        ids = torch.randint(96, (1, 28), generator=torch.Generator().manual_seed(0))
        theirs, ours = (_cached(m, ids, pieces, full(4))[4].double() for m in (plain, fast))
        error = float((ours - theirs).norm() / theirs.norm())
        assert 1e-4 < error < 3e-2
