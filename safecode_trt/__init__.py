"""SafeCoDe-TRT: vision-language models on the device, with safety-aware contrastive decoding."""

__version__ = "0.1.0"
