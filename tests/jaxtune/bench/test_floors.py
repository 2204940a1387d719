"""The arithmetic of a step against numbers worked out by hand."""

import pytest

from jaxtune.bench.floors import (
    Rates,
    attended_pairs,
    datasheet_peak,
    floor,
    linear_parameters,
    work,
)
from jaxtune.bench.subject import find_subject

H200 = Rates(matmul=684e12, copy=4.3e12)


def test_llama_3_8b_by_hand():
    config = find_subject("llama-3-8b").config
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    assert linear_parameters(config) == 32 * layer == 6_979_321_856
    done = work(config, [2048, 2048], bits=4, accumulation=1)
    assert done.tokens == 4096
    assert done.linears == 4 * 6_979_321_856 * 4096
    assert done.head == 4 * 128256 * 4096 * 4096
    assert done.attention == 32 * 2 * 3.5 * 2 * 2048**2 * 4096
    assert done.dequantisation == pytest.approx(35.12e9, rel=1e-3)
    assert done.flops == done.linears + done.head + done.attention


def test_the_floor_of_the_design():
    config = find_subject("llama-3-8b").config
    least = floor(work(config, [2048, 2048], bits=4, accumulation=1), H200)
    assert least.linears == pytest.approx(171, rel=0.03)
    assert least.head == pytest.approx(13, rel=0.04)
    assert least.attention == pytest.approx(19, rel=0.01)
    assert least.dequantisation == pytest.approx(8.17, rel=0.01)
    assert least.total == pytest.approx(211, rel=0.02)
    parts = (least.linears, least.head, least.attention, least.dequantisation)
    assert least.total == pytest.approx(sum(parts))


def test_llama_3_2_1b_of_the_design():
    config = find_subject("llama-3.2-1b").config
    least = floor(work(config, [2048, 2048], bits=4, accumulation=1), H200)
    assert least.total == pytest.approx(33, rel=0.1)


def test_sixteen_bits_are_not_dequantised():
    config = find_subject("llama-3.2-1b").config
    assert work(config, [64], bits=16, accumulation=1).dequantisation == 0


def test_each_micro_batch_dequantises_again():
    config = find_subject("llama-3.2-1b").config
    once, twice = (work(config, [64] * 4, bits=4, accumulation=n) for n in (1, 2))
    assert twice.dequantisation == 2 * once.dequantisation
    assert twice.flops == once.flops


@pytest.mark.parametrize(
    ("length", "window", "pairs"), [(10, None, 50), (10, 4, 32), (3, 4, 4.5), (4, 4, 8)]
)
def test_pairs_of_a_window(length, window, pairs):
    assert attended_pairs(length, window) == pairs


def test_windows_are_respected_layer_by_layer():
    config = find_subject("gemma-3-1b").config
    whole, windowed = 2048 * 2048 / 2, 512 * 2048 - 512 * 512 / 2
    done = work(config, [2048], bits=16, accumulation=1)
    assert done.attention == 3.5 * 4 * 4 * 256 * (4 * whole + 22 * windowed)


def test_documents_see_only_themselves():
    config = find_subject("llama-3.2-1b").config
    row, halves = (work(config, d, bits=16, accumulation=1) for d in ([2048], [1024, 1024]))
    assert halves.attention == row.attention / 2
    assert (halves.linears, halves.head) == (row.linears, row.head)


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA L40S", None),
        ("NVIDIA A10G", None),
        ("cpu", None),
    ],
)
def test_datasheet_peaks(kind, tera):
    assert datasheet_peak(kind) == (None if tera is None else tera * 1e12)
