from typing import Any

import pytest

from haq.hwmodels.kernels.bitserial import backends


@pytest.fixture(scope="session", params=backends())
def backend(request: Any) -> str:
    name: str = request.param
    return name
