"""The exception tree: every mistake of a user or a file, as one line a person can act on.

`str(error)` is that line. It names the file, the value and the limit.
"""

from __future__ import annotations


class GptOssError(Exception):
    """Base of everything raised on purpose; `str(error)` is what a person sees."""


class OptionError(GptOssError, ValueError):
    """An argument of `load` with an invalid value."""


class ClosedError(GptOssError):
    """An engine that is used after it was closed."""


class ModelNotFoundError(GptOssError):
    """No such folder or Hugging Face id, or it is not in the cache while offline."""


class CheckpointError(GptOssError):
    """A checkpoint file that is broken, or not one this package can read."""


class ConfigError(CheckpointError):
    """A config.json that is broken, out of range, or of another architecture."""


class VocabularyError(CheckpointError):
    """A tokenizer that disagrees with the vocabulary."""


class MessageError(GptOssError):
    """Messages, tools or a response format that cannot be rendered."""


class GrammarError(GptOssError):
    """A schema, grammar or regular expression that cannot be enforced or satisfied."""


class SamplingError(GptOssError):
    """A sampling option out of range."""


class SessionError(GptOssError):
    """A saved conversation that is missing or damaged, or a name that none can have."""


class ContextError(GptOssError):
    """A prompt that does not fit the context.

    tokens: of the prompt; None where it was not read in full. context: tokens it had to fit.
    """

    def __init__(
        self, message: str, *, tokens: int | None = None, context: int | None = None
    ) -> None:
        super().__init__(message)
        self.tokens, self.context = tokens, context


class ConversionError(GptOssError):
    """A conversion that cannot start or resume, or whose result differs from its source."""


class MemoryBudgetError(GptOssError):
    """A model or context that does not fit the available memory."""


class DeviceError(GptOssError):
    """A requested device or backend that is missing or cannot be used."""


class CapacityError(GptOssError):
    """More sequences at a time than the model was opened for."""


class NumericalError(GptOssError):
    """Logits that are infinite or NaN: no token can be sampled from them."""


class KernelError(GptOssError):
    """A kernel that was explicitly requested, but cannot be used."""


class SandboxError(GptOssError):
    """A sandbox that cannot be made here, so that a model's code is not run."""


class McpFileError(GptOssError):
    """A file of MCP servers that is broken, or that names a program which is not there."""
