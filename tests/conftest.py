"""No test asks a model of the developer's, or writes into a home."""

import pytest

from dreamactor.mllm import VARIABLES


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path_factory):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
