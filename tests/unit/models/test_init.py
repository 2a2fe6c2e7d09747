import torch

from models.init import derive_seed, init_weights
from models.llama import Llama
from tests.tiny import tiny_config, tiny_llama


def test_a_layers_weights_do_not_depend_on_how_many_layers_there_are():
    small, large = tiny_llama(tiny_config(num_hidden_layers=2)), tiny_llama()
    others = dict(large.named_parameters())
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, others[name]), name


def test_weights_do_not_depend_on_the_generator_of_the_process():
    first = tiny_llama()
    torch.manual_seed(123)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.parameters(), tiny_llama().parameters(), strict=True)
    )


def test_every_matrix_is_another_draw_and_another_seed_changes_them_all():
    matrices = [p for p in tiny_llama().parameters() if p.dim() == 2]
    matrices += [p for p in tiny_llama(seed=1).parameters() if p.dim() == 2]
    assert len({m.flatten()[0].item() for m in matrices}) == len(matrices)


def test_matrices_are_normal_and_smaller_with_depth_where_they_write_into_the_stream():
    config = tiny_config(attention_bias=True, mlp_bias=True, initializer_range=0.3)
    for name, parameter in tiny_llama(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "o_proj" in name or "down_proj" in name:
            layer = int(name.split(".")[2])
            expected = 0.3 / (2 * (layer + 1)) ** 0.5
            assert abs(parameter.std() / expected - 1) < 0.07, name
        else:
            assert abs(parameter.std() - 0.3) < 0.02, name


def test_whole_parameters_are_handed_to_the_given_assignment():
    model, given = Llama(tiny_config()), {}

    def assign(parameter, fresh):
        given[id(parameter)] = fresh

    init_weights(model, model.config, seed=0, assign=assign)
    expected = tiny_llama(dtype=torch.float32)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(given[id(ours)], theirs)


def test_seeds_tell_numbers_from_text_and_one_grouping_from_another():
    seeds = {derive_seed("a", 1), derive_seed("a", "1"), derive_seed("a1"), derive_seed(1, "a")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
