"""Built-in networks, and loading the user's own networks."""

from haq.models.pretrained import open_model, open_untrained, pretrained_digits
from haq.models.registry import get_model, list_models, load_model

__all__ = ["get_model", "list_models", "load_model", "open_model", "open_untrained", "pretrained_digits"]
