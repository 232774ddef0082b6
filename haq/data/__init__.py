"""The data that a network is fine-tuned, scored and tested on: labelled arrays, pictures or texts."""

from haq.data.registry import get_data
from haq.data.samples import IGNORED, ImageData, Images, Samples, Tokens

__all__ = ["IGNORED", "ImageData", "Images", "Samples", "Tokens", "get_data"]
