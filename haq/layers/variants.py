"""Subclasses of the user's module classes with methods of ours mixed in, which can be copied and pickled."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, cast

from torch import nn

__all__ = ["Variant", "become", "variant"]


class Variant(nn.Module):
    """Base class of the mixins; see `variant`."""

    made_of: ClassVar[tuple[type[nn.Module], ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles the classes it was made from, because another process does not know the class made here."""
        return _remade, self.made_of, self.__getstate__()  # type: ignore[no-untyped-call]


def variant(cls: type[nn.Module], *added: type[nn.Module]) -> type[nn.Module]:
    """Returns a subclass of `cls` in which the methods of `added` take precedence; cached by these classes.

    A variant of a variant is made from the user's class, so that another process can make it too.
    """
    if issubclass(cls, Variant):
        cls, *before = cls.made_of
        added = (*added, *(kind for kind in before if kind not in added))
    if (cls, *added) not in _made:
        _made[cls, *added] = _make(cls, *added)
    return _made[cls, *added]


_made: dict[tuple[type[nn.Module], ...], type[nn.Module]] = {}


def _make(cls: type[nn.Module], *added: type[nn.Module]) -> type[nn.Module]:
    names = {"made_of": (cls, *added), "__module__": cls.__module__, "__doc__": cls.__doc__}
    kind: Any = type(cls.__name__, (*added, cls), names)
    if kind.forward is not cls.forward:  # tracers and exporters read the signature of `forward`
        kind.forward = wraps(cls.forward, assigned=(), updated=())(_passing_on(kind.forward))
    return cast("type[nn.Module]", kind)


def _passing_on(forward: Callable[..., Any]) -> Callable[..., Any]:
    def passed_on(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return passed_on


def become(module: nn.Module, *added: type[nn.Module]) -> None:
    """Turns a module into the variant of its class, in place, so that all references to it see the change."""
    module.__class__ = variant(type(module), *added)


def _remade(cls: type[nn.Module], *added: type[nn.Module]) -> nn.Module:
    kind = variant(cls, *added)
    module: nn.Module = kind.__new__(kind)
    return module
