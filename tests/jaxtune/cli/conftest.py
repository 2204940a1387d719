"""A model and an adapter, made once for the tests of the programs."""

from pathlib import Path

import pytest

from tests.jaxtune.cli.made import make_adapter, make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("programs") / "model")


@pytest.fixture(scope="session")
def adapter(model: Path) -> Path:
    return make_adapter(model, model.parent / "adapter")


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
