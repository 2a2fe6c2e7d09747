import gc
import weakref
from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.memory import peak_bytes
from models.gradient import add_gradient
from models.llama import Llama
from models.plan import LayerPlan, dropped, full
from models.tokens import make_tokens
from tests.tiny import tiny_config, tiny_llama
from trainer.head_loss import HeadGradient, chunk_size, exit_loss
from trainer.losses import ExitLosses, exit_losses

VOCAB, ROWS, LENGTH = 96, 3, 11
WEIGHTS = {1: 0.1, 2: 0.2, 4: 0.7}
EVERY = full(4, exits=(1, 2, 3, 4))
NOBODY = torch.tensor([], dtype=torch.long)


def ids_and_labels(seed: int = 0, *, vocab: int = VOCAB) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(0, vocab, (2, ROWS, LENGTH), generator=generator)
    labels[0, :9] = -100  # more than one whole chunk of 4
    return ids, labels


def hiddens_of(model: Llama, ids: Tensor, plan: LayerPlan = EVERY) -> dict[int, Tensor]:
    tokens = make_tokens(model.config, torch.arange(ids.shape[1])[None])
    return model(ids, tokens, plan)


def train(
    model: Llama,
    hiddens: dict[int, Tensor],
    labels: Tensor,
    weights: dict[int, float] = WEIGHTS,
    *,
    chunk: int | None = 4,
    measure: bool = True,
) -> ExitLosses:
    losses = exit_losses(
        model, hiddens, labels, weights, total_tokens=24, chunk_tokens=chunk, measure=measure
    )
    torch.autograd.backward([hiddens[e] for e in losses.gradients], [*losses.gradients.values()])
    return losses


def train_plainly(
    model: Llama,
    hiddens: dict[int, Tensor],
    labels: Tensor,
    weights: dict[int, float] = WEIGHTS,
) -> dict[int, Tensor]:
    """The slow twin: all logits at once, autograd."""
    sums = {
        e: cross_entropy(model.unembed(h).flatten(0, 1), labels.flatten(), reduction="sum")
        for e, h in hiddens.items()
    }
    torch.stack([weight * sums[e] / 24 for e, weight in weights.items()]).sum().backward()
    return {e: value.detach() for e, value in sums.items()}


def gradients(model: Llama) -> dict[str, Tensor]:
    named = model.named_parameters()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named}


def assert_trained_alike(model: Llama, twin: Llama, tolerance: float = 1e-10) -> None:
    expected = gradients(twin)
    for name, gradient in gradients(model).items():
        difference = (gradient - expected[name]).abs().max()
        assert difference <= tolerance, f"{name} differs by {difference}"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 11, 33, 100, None])
@pytest.mark.parametrize("weights", [{4: 1.0}, {2: 1.0}, WEIGHTS])
def test_chunked_exits_have_the_losses_and_gradients_of_autograd(
    tied: bool, chunk: int | None, weights: dict[int, float]
) -> None:
    model = tiny_llama(tiny_config(tie_word_embeddings=tied))
    twin = deepcopy(model)
    ids, labels = ids_and_labels()
    losses = train(model, hiddens_of(model, ids), labels, weights, chunk=chunk)
    expected = train_plainly(twin, hiddens_of(twin, ids), labels, weights)
    assert losses.loss_sums.keys() == expected.keys()
    for e, value in expected.items():
        torch.testing.assert_close(losses.loss_sums[e], value, rtol=1e-10, atol=1e-10)
    assert_trained_alike(model, twin)


def test_gradients_of_microbatches_add_up() -> None:
    model = tiny_llama()
    twin = deepcopy(model)
    for seed in range(3):
        ids, labels = ids_and_labels(seed)
        train(model, hiddens_of(model, ids), labels)
        train_plainly(twin, hiddens_of(twin, ids), labels)
    assert_trained_alike(model, twin)


def test_exits_with_no_visited_layer_between_them_all_count() -> None:
    model = tiny_llama()
    twin = deepcopy(model)
    ids, labels = ids_and_labels()
    survivors = [None, NOBODY, None, NOBODY]
    plan = dropped(survivors, exits=(1, 2, 3, 4))
    weights = dict.fromkeys(plan.exits, 0.25)
    train(model, hiddens_of(model, ids, plan), labels, weights)
    train_plainly(twin, hiddens_of(twin, ids, plan), labels, weights)
    assert_trained_alike(model, twin)


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    losses = train(model, hiddens_of(model, ids), torch.full_like(labels, -100))
    assert all(value == 0 for value in losses.loss_sums.values())
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_an_exit_with_weight_zero_or_none_is_measured_only() -> None:
    model, twin = tiny_llama(), tiny_llama()
    ids, labels = ids_and_labels()
    losses = train(model, hiddens_of(model, ids), labels, {2: 0.5, 3: 0.0})
    train_plainly(twin, hiddens_of(twin, ids), labels, {2: 0.5})
    assert list(losses.gradients) == [2]
    assert losses.loss_sums.keys() == {1, 2, 3, 4}
    assert_trained_alike(model, twin)


def test_without_weights_nothing_is_back_propagated() -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    with torch.no_grad():
        hiddens = hiddens_of(model, ids)
        losses = exit_losses(
            model, hiddens, labels, {}, total_tokens=1, chunk_tokens=4, measure=True
        )
    assert losses.gradients == {}
    assert losses.loss_sums.keys() == losses.agreements.keys() == {1, 2, 3, 4}
    assert all(p.grad is None for p in model.parameters())


def test_agreement_counts_valid_positions_where_an_exit_says_what_the_last_says() -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    hiddens = hiddens_of(model, ids)
    guesses = {e: model.unembed(h).argmax(dim=-1) for e, h in hiddens.items()}
    losses = train(model, hiddens, labels)
    same = {e: int(((g == guesses[4]) & (labels != -100)).sum()) for e, g in guesses.items()}
    assert {e: int(count) for e, count in losses.agreements.items()} == same
    assert same[4] == 24 > same[1]


def test_agreement_is_not_counted_unasked() -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    assert train(model, hiddens_of(model, ids), labels, measure=False).agreements == {}


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_not_finite_makes_the_loss_not_finite(broken: float) -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    with torch.no_grad():
        model.head_parameters()[1][labels[1, 3]] = broken
    losses = train(model, hiddens_of(model, ids), labels)
    assert not any(value.isfinite() for value in losses.loss_sums.values())


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    with torch.no_grad():
        model.model.norm.weight.mul_(1e4)
    twin = deepcopy(model)
    losses = train(model, hiddens_of(model, ids), labels)
    expected = train_plainly(twin, hiddens_of(twin, ids), labels)
    assert expected[4] > 1e4
    torch.testing.assert_close(losses.loss_sums, expected)
    assert_trained_alike(model, twin, 1e-6)


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_a_label_that_is_no_token_is_refused(wrong: int) -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    labels[1, 1] = wrong
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        train(model, hiddens_of(model, ids), labels)


def error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative, of all tensors together."""
    pairs = list(zip(found, exact, strict=True))
    off = sum(float((f.double() - x).square().sum()) for f, x in pairs)
    return (off / sum(float(x.square().sum()) for _, x in pairs)) ** 0.5


@pytest.mark.parametrize(("chunk", "slack"), [(256, 1.01), (16, 1.25)])
def test_bfloat16_gradients_are_as_close_to_the_exact_ones_as_those_of_autograd(
    chunk: int, slack: float
) -> None:
    model = tiny_llama(tiny_config(vocab_size=500), dtype=torch.float32).bfloat16()
    plain, exact = deepcopy(model), deepcopy(model).double()
    hidden, labels = torch.randn(256, 64).bfloat16(), torch.randint(0, 500, (256,))
    head = HeadGradient(model, add_gradient)
    exit_loss(model, hidden, labels, chunk_tokens=chunk, guess=False, scale=1 / 256, head=head)
    head.deliver()
    cross_entropy(plain.unembed(hidden).float(), labels).backward()
    cross_entropy(exact.unembed(hidden.double()), labels).backward()
    ours, theirs, right = ([p.grad for p in m.head_parameters()] for m in (model, plain, exact))
    assert error(ours, right) <= slack * error(theirs, right)


def test_bfloat16_losses_are_those_of_float32() -> None:
    model = tiny_llama(tiny_config(vocab_size=500), dtype=torch.float32).bfloat16()
    hidden, labels = torch.randn(256, 64).bfloat16(), torch.randint(0, 500, (256,))
    loss = exit_loss(model, hidden, labels, chunk_tokens=16, guess=False).loss_sum
    expected = cross_entropy(model.unembed(hidden).float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)  # so float32, too


def test_hidden_states_are_freed_with_the_graph() -> None:
    model = tiny_llama()
    ids, labels = ids_and_labels()
    gc.disable()  # a cycle through autograd's hooks would not even be found by it
    try:
        hiddens = hiddens_of(model, ids)
        train(model, hiddens, labels)
        alive = weakref.ref(hiddens[2].untyped_storage())
        del hiddens
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("vocab", [32_000, 128_000])
def test_the_peak_of_any_number_of_exits_is_that_of_one_and_a_chunk_at_most(vocab: int) -> None:
    layers, chunk = 8, 8
    config = tiny_config(vocab_size=vocab, hidden_size=8, num_hidden_layers=layers)
    model = tiny_llama(config, dtype=torch.float32)
    ids, labels = torch.randint(0, vocab, (2, 1, 32))

    def step(exits: Sequence[int]) -> None:
        hiddens = hiddens_of(model, ids, full(layers, exits=exits))
        weights = dict.fromkeys(exits, 1 / len(exits))
        train(model, hiddens, labels, weights, chunk=chunk, measure=False)

    def peak(exits: Sequence[int]) -> int:
        model.zero_grad()
        return peak_bytes(lambda: step(exits))

    of_chunk = chunk * vocab * 4  # as large as the head's gradient, a quarter of all logits
    plain = peak([layers])
    assert plain < 3 * of_chunk
    assert peak([2, 4, 6, 8]) <= plain + of_chunk
    assert peak(range(1, layers + 1)) <= plain + of_chunk


def test_one_gradient_of_hidden_states_is_alive_however_many_exits() -> None:
    model = tiny_llama(tiny_config(hidden_size=256), dtype=torch.float32)
    labels = torch.randint(0, VOCAB, (1, 1024))

    def peak(num_exits: int) -> int:
        h = torch.randn(1, 1024, 256).requires_grad_()
        hiddens = {}
        for e in range(num_exits):
            h = hiddens[e + 1] = h * 1.0
        model.zero_grad()
        weights = dict.fromkeys(hiddens, 0.1)
        return peak_bytes(lambda: train(model, hiddens, labels, weights, chunk=None))

    assert peak(12) <= peak(2) + 1024 * 256 * 4


@pytest.mark.parametrize(
    ("vocab", "configured", "size"),
    [(32_000, None, 8192), (128_256, None, 2048), (2**40, None, 1), (32_000, 100, 100)],
)
def test_the_vocabulary_decides_the_chunk_unless_configured(
    vocab: int, configured: int | None, size: int
) -> None:
    assert chunk_size(vocab, configured) == size
