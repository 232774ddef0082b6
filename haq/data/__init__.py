"""The data that a network is fine-tuned, scored and tested on: labelled images, or texts and their next tokens."""

from haq.data.registry import get_data
from haq.data.samples import ImageData, Images, Samples, Tokens

__all__ = ["ImageData", "Images", "Samples", "Tokens", "get_data"]
