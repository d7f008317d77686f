from __future__ import annotations

import pytest

from tests.training.tiny_runs import TinyData


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return TinyData(tmp_path_factory.mktemp("tiny-data"), 10)
