"""The exception tree: every mistake of a user or a file, as one line a person can act on.

`str(error)` is that line. It names the file, the value and the limit.
"""

from __future__ import annotations


class GptOssError(Exception):
    """Base of everything raised on purpose; `str(error)` is what a person sees."""


class OptionError(GptOssError, ValueError):
    """An argument of `load` that cannot be."""


class ClosedError(GptOssError):
    """An engine that is used after it was closed."""


class ModelNotFoundError(GptOssError):
    """No such folder or Hugging Face id, or it is not in the cache while offline."""


class CheckpointError(GptOssError):
    """A broken or foreign file of a checkpoint."""


class ConfigError(CheckpointError):
    """A config.json that is broken, out of range, or of another architecture."""


class VocabularyError(CheckpointError):
    """A tokenizer that disagrees with the vocabulary."""


class MessageError(GptOssError):
    """Messages, tools or a response format that cannot be rendered."""


class SamplingError(GptOssError):
    """A sampling option out of range."""


class ContextError(GptOssError):
    """A prompt that does not fit the context."""


class ConversionError(GptOssError):
    """A conversion that cannot begin, go on or be believed."""


class MemoryBudgetError(GptOssError):
    """What is asked does not fit the memory there is."""


class DeviceError(GptOssError):
    """A device or backend that is asked for, but is not there or cannot be used."""


class CapacityError(GptOssError):
    """More sequences at a time than the model was opened for."""


class NumericalError(GptOssError):
    """Logits that are infinite or no numbers: no token can be drawn from them."""


class KernelError(GptOssError):
    """A kernel that was insisted on, but cannot be used."""
