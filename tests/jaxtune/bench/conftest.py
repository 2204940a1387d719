"""A model's folder for the benches to read: a config.json, and no weights."""

import json

import pytest

from tests.jaxtune.bench.tiny import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny")
    (made / "config.json").write_text(json.dumps(TINY))
    return made
