"""Real data and weights that lie beside a checkout; they are not part of the project, and tests skip without them."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
RESNET20 = FOLDER / "weights" / "resnet20-cifar10.pt"
CIFAR10 = FOLDER / "cifar10"

needs_shared_data = pytest.mark.skipif(not RESNET20.is_file(), reason="../shared/data is not beside this checkout")
