"""The order of the rows, against torch and accelerate themselves."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import get_length_grouped_indices

from jaxtune.data.order import epoch_order, grouped_by_length, sampled, torch_randperm

SIZES = [0, 1, 2, 3, 10, 1000, 60000]


@pytest.mark.parity
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", [0, 3407, 2**32 - 1])
def test_equals_randperm_with_a_seeded_generator(n, seed):
    expected = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_array_equal(torch_randperm(n, seed), expected.numpy())


@pytest.mark.parity
def test_equals_randperm_after_manual_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3407)
        expected = torch.randperm(1000)
    np.testing.assert_array_equal(torch_randperm(1000, 3407), expected.numpy())


@pytest.mark.parity
@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("seed", [42, 3407])
def test_equals_the_sampler_that_accelerate_makes_of_the_trainers(n, seed):
    """`Trainer` hands accelerate a RandomSampler; `set_seed(args.seed)` came before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sampler = SeedableRandomSampler(range(n))
        epochs = [list(sampler) for _ in range(3)]
    assert [epoch_order(n, seed, epoch).tolist() for epoch in range(3)] == epochs


@pytest.mark.parity
@pytest.mark.parametrize(("seed", "epoch"), [(2**32 - 1, 1), (2**32 + 5, 0)])
def test_seeds_beyond_32_bits_wrap_as_in_torch(seed, epoch):
    expected = torch.randperm(10, generator=torch.Generator().manual_seed(seed + epoch))
    np.testing.assert_array_equal(epoch_order(10, seed, epoch), expected.numpy())


def test_epochs_differ():
    first, second = epoch_order(50, 3407, 0), epoch_order(50, 3407, 1)
    assert first.tolist() != second.tolist()
    assert sorted(first) == sorted(second) == list(range(50))


@pytest.mark.parity
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=300),
    st.integers(1, 9),
    st.sampled_from([0, 42, 3407]),
)
def test_rows_are_grouped_as_transformers_groups_them(lengths, size, seed):
    generator = torch.Generator().manual_seed(seed)
    expected = get_length_grouped_indices(lengths, size, generator=generator)
    assert grouped_by_length(lengths, size, seed).tolist() == expected


def test_each_way_of_sampling_takes_every_row_once():
    lengths = np.random.default_rng(0).integers(1, 99, 37)
    for sampling in ("random", "sequential", "group_by_length"):
        orders = [sampled(lengths, sampling, 4, 7, epoch) for epoch in (0, 1)]
        assert all(sorted(order) == list(range(37)) for order in orders)
        assert (orders[0].tolist() == orders[1].tolist()) == (sampling == "sequential")
    assert sampled(lengths, "random", 4, 7, 1).tolist() == epoch_order(37, 7, 1).tolist()
