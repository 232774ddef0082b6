"""Quantization-aware fine-tuning, with the float network as teacher or with labels."""

from haq.quant.qat.finetuning import Finetuning, finetune
from haq.quant.qat.lessons import BATCH_SIZE, Lessons

__all__ = ["BATCH_SIZE", "Finetuning", "Lessons", "finetune"]
