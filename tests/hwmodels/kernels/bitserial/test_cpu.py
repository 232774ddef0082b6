import os
import subprocess
import sys

import numba
import pytest

from haq.errors import HardwareError
from haq.hwmodels.kernels.bitserial import cpu


@pytest.fixture(autouse=True)
def _fresh():
    yield
    for function in (cpu.cpu_features, cpu.backends, cpu._backends):
        function.cache_clear()


def pretend(monkeypatch, features):
    for function in (cpu.cpu_features, cpu.backends, cpu._backends):
        function.cache_clear()
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)


@pytest.mark.parametrize(
    ("features", "names", "tree_gain"),
    [
        ("+avx2,+avx512f,+avx512vpopcntdq", ("avx512", "avx2", "plain", "neon"), 1),
        ("+avx2,+avx512f,-avx512vpopcntdq", ("avx512", "avx2", "plain", "neon"), 2),
        ("+avx2,-avx512f", ("avx2", "plain", "neon"), 1),
        ("+neon,+fullfp16", ("neon", "plain"), 1),
        ("", ("plain", "neon"), 1),
    ],
)
def test_features_choose_the_backends(monkeypatch, features, names, tree_gain):
    pretend(monkeypatch, features)
    assert cpu.backends() == names
    assert cpu.get_backend().name == names[0]
    assert cpu.get_backend().tree_gain == tree_gain


def test_a_backend_that_the_cpu_lacks_is_refused(monkeypatch):
    pretend(monkeypatch, "+avx2")
    assert cpu.get_backend("plain").lanes == 1
    with pytest.raises(HardwareError, match="backend='avx512': this CPU runs avx2, plain, neon; give one of those"):
        cpu.get_backend("avx512")


def test_hardware_models_do_not_import_numba():
    code = "import sys, haq.hwmodels; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
