"""SafeCoDe-TRT: vision-language models on the device, with safety-aware contrastive decoding.

`safecode_trt.runtime.Engine` opens a bundle and answers; `safecode_trt.policy.make_policy` says how.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
