"""Quantization-aware fine-tuning, by distillation from the float network or on labels."""

from haq.quant.qat.finetuning import Finetuning, finetune
from haq.quant.qat.lessons import BATCH_SIZE, Lessons

__all__ = ["BATCH_SIZE", "Finetuning", "Lessons", "finetune"]
