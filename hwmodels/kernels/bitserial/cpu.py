"""The features of this CPU, and the kernel backends that it can run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numba
from llvmlite import binding

from haq.errors import HardwareError

__all__ = ["Backend", "backends", "cpu_features", "get_backend"]


@dataclass(frozen=True)
class Backend:
    """How the inner tile is built for a kind of CPU.

    Attributes:
        name: `avx512`, `avx2`, `neon` or `plain`.
        lanes: 64-bit lanes of a vector, one output channel in each.
        tree_gain: How much cheaper a word is in the tree of carry-save adders than counted alone; 1 if the tree never
            pays off. The tree needs `vpternlog`, which computes any Boolean function of three vectors, and pays off on
            CPUs without an instruction that counts the ones of a vector.
    """

    name: str
    lanes: int
    tree_gain: float = 1.0


@cache
def cpu_features() -> frozenset[str]:
    """Returns LLVM's names of the features that kernels are compiled for, such as `avx512f` or `neon`.

    These are the features of the host, unless `NUMBA_CPU_NAME` or `NUMBA_CPU_FEATURES` restrict the compiler: an
    instruction that its target lacks would abort the process.
    """
    named: str | None = numba.config.CPU_FEATURES
    if named is not None:
        return frozenset(feature[1:] for feature in named.split(",") if feature.startswith("+"))
    if numba.config.CPU_NAME is not None:
        return frozenset()
    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


@cache
def backends() -> tuple[str, ...]:
    """Returns the names of the backends that this CPU can run, fastest first.

    `neon` and `plain` run everywhere, because LLVM maps vectors of two words to what the CPU has.
    """
    return tuple(_backends())


def get_backend(name: str | None = None) -> Backend:
    """Returns the named backend, or the fastest one.

    Raises:
        HardwareError: This CPU cannot run it, or there is no such backend.
    """
    known = _backends()
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise HardwareError(f"backend={name!r}: this CPU runs {', '.join(known)}; give one of those, or none")
    return known[name]


@cache
def _backends() -> dict[str, Backend]:
    features = cpu_features()
    found = []
    if "avx512f" in features:
        found.append(Backend("avx512", 8, 1.0 if "avx512vpopcntdq" in features else 2.0))
    if "avx2" in features:
        found.append(Backend("avx2", 4))
    neon, plain = Backend("neon", 2), Backend("plain", 1)
    found += [neon, plain] if "neon" in features else [plain, neon]
    return {backend.name: backend for backend in found}
