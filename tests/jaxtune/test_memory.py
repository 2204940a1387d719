"""Memory under the names that notebooks print."""

import re
from typing import Any

import jax
import numpy as np
import pytest

import jaxtune
from jaxtune import memory
from jaxtune.memory import MemoryStats


def test_a_held_array_counts() -> None:
    before = jaxtune.memory_stats()
    held = jax.device_put(np.ones(2**24, np.float32)).block_until_ready()
    after = jaxtune.memory_stats()
    assert after.memory_reserved - before.memory_reserved > 0.9 * held.nbytes
    assert after.total_memory >= after.max_memory_reserved >= after.memory_reserved


class Card:
    device_kind = "Tesla T4"

    def memory_stats(self) -> dict[str, Any]:
        return {"bytes_limit": 2**34, "bytes_in_use": 2**32, "peak_bytes_in_use": 2**33}


def test_a_card_is_asked_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Card()])
    found = jaxtune.memory_stats()
    assert found == MemoryStats(
        name="Tesla T4",
        total_memory=2**34,
        memory_reserved=2**32,
        max_memory_reserved=2**33,
    )
    assert found.lines() == [
        "GPU = Tesla T4. Max memory = 16.000 GB.",
        "4.000 GB of memory reserved.",
    ]


def test_the_lines_after_training_are_the_notebooks() -> None:
    sizes = {"name": "Tesla T4", "total_memory": 2**34}
    before = MemoryStats(**sizes, memory_reserved=2**32, max_memory_reserved=2**32)
    after = MemoryStats(**sizes, memory_reserved=2**32, max_memory_reserved=2**33)
    assert [re.sub(r"[\d.]+ (GB|%)\.$", "", line) for line in after.lines(before)] == [
        "Peak reserved memory = ",
        "Peak reserved memory for training = ",
        "Peak reserved memory % of max memory = ",
        "Peak reserved memory for training % of max memory = ",
    ]
    numbers = [float(re.findall(r"= ([\d.]+) ", line)[0]) for line in after.lines(before)]
    assert numbers == [8.0, 4.0, 50.0, 25.0]
