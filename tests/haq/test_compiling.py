import numba

from haq.compiling import jit


def test_jit_does_without_a_cache(monkeypatch):
    compiled = []

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        compiled.append(options)
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert jit(len)("four") == 4
    assert compiled == [{"nogil": True, "error_model": "numpy"}]
