"""The layers of a network: their description, their calls, and networks rebuilt so that all layers are called."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from haq.layers.spec import LayerSpec, ends

if TYPE_CHECKING:
    from haq.layers.copying import copied, replace_module, replace_modules
    from haq.layers.reaching import reachable
    from haq.layers.running import evaluating, fresh, quantizable_layers, run_sample, watched
    from haq.layers.shared_inputs import find_shared_inputs
    from haq.layers.tracing import trace

__all__ = [
    "LayerSpec",
    "copied",
    "ends",
    "evaluating",
    "find_shared_inputs",
    "fresh",
    "quantizable_layers",
    "reachable",
    "replace_module",
    "replace_modules",
    "run_sample",
    "trace",
    "watched",
]

_PLACES = {
    "copied": "copying",
    "replace_module": "copying",
    "replace_modules": "copying",
    "reachable": "reaching",
    "evaluating": "running",
    "fresh": "running",
    "run_sample": "running",
    "find_shared_inputs": "shared_inputs",
    "watched": "running",
    "quantizable_layers": "running",
    "trace": "tracing",
}


def __getattr__(name: str) -> Any:
    """Imports on first use what needs torch: that takes over a second, and reports use `LayerSpec` without it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
