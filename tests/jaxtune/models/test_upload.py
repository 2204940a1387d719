"""Tensors reach the device in pieces, each a copy of a buffer that is written again."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from convert import open_checkpoint
from jaxtune.models import upload
from jaxtune.models.upload import Uploads, bytes_of, pieces


@pytest.fixture
def table(tmp_path: Path) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(37, 16)).astype(np.float32)
    safetensors.numpy.save_file({"table": values}, tmp_path / "model.safetensors")
    return values


@pytest.mark.parametrize("limit", [1, 64, 500, 10**6])
def test_pieces_cover_every_row_once_and_keep_the_limit(
    table: np.ndarray, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PIECE_BYTES", limit)
    with open_checkpoint(tmp_path) as checkpoint:
        info = checkpoint.info("table")
        found = list(pieces(info))
        uploads = Uploads(checkpoint, None)
        read = [uploads.rows("table", start, stop) for start, stop in found]
    assert [row for start, stop in found for row in range(start, stop)] == list(range(37))
    row = bytes_of(info) // 37
    assert max(stop - start for start, stop in found) <= max(1, limit // row)
    # Looked at only now, when the buffer has held every other piece.
    np.testing.assert_array_equal(np.concatenate(read), table)
