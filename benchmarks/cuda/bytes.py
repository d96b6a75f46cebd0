"""Bytes and operations of the model in PyTorch, by arithmetic from its config.

itemsize: bytes of the compute dtype. bits: 8 where matrices are in bytes with a scale and a bias of
the compute dtype by group; None where they are in the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_mlx.spec.config import MXFP4_BLOCK, ModelConfig

GROUP = 64  # of 8-bit matrices


@dataclass(frozen=True)
class Sizes:
    """What the parts of a model take and cost."""

    config: ModelConfig
    itemsize: int
    bits: int | None = None

    def matrix(self, outputs: int, inputs: int) -> int:
        """Bytes of a matrix that may be in 8 bits."""
        if self.bits is None:
            return outputs * inputs * self.itemsize
        return outputs * (inputs + 2 * self.itemsize * (inputs // GROUP))

    @property
    def qkv_rows(self) -> int:
        c = self.config
        return (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim

    @property
    def width(self) -> int:
        """Of all query heads together."""
        return self.config.num_attention_heads * self.config.head_dim

    @property
    def layer(self) -> int:
        """Bytes of a layer without its experts."""
        c = self.config
        matrices = self.matrix(self.qkv_rows, c.hidden_size) + self.matrix(
            c.hidden_size, self.width
        )
        router = c.num_local_experts * (c.hidden_size + 1)
        vectors = self.qkv_rows + 3 * c.hidden_size + c.num_attention_heads
        return matrices + (router + vectors) * self.itemsize

    @property
    def expert(self) -> int:
        """Bytes of one expert: gate, up and down in MXFP4, biases in the compute dtype."""
        c = self.config
        values = 3 * c.hidden_size * c.intermediate_size
        biases = 2 * c.intermediate_size + c.hidden_size
        return values // 2 + values // MXFP4_BLOCK + biases * self.itemsize

    @property
    def table(self) -> int:
        """Bytes of the embedding; lm_head takes as many."""
        return self.matrix(self.config.vocab_size, self.config.hidden_size)

    @property
    def weights(self) -> int:
        """Bytes of the whole model."""
        c = self.config
        layers = c.num_hidden_layers * (self.layer + c.num_local_experts * self.expert)
        return layers + 2 * self.table + c.hidden_size * self.itemsize

    def cache(self, rows: int, context: int) -> int:
        """Bytes of keys and values of `rows` sequences of `context` tokens."""
        full, sliding = self._kinds()
        places = full * context + sliding * self.config.sliding_window
        return rows * places * self._token

    def step(self, sequences: int, context: int, experts: float) -> int:
        """Bytes that one token each of so many sequences must read.

        context: tokens that each attends to, its own included; experts: different ones that a
        layer's tokens visit, on average.
        """
        c = self.config
        layers = c.num_hidden_layers * (self.layer + experts * self.expert)
        full, sliding = self._kinds()
        seen = full * context + sliding * min(context, c.sliding_window)
        ends = self.table + c.hidden_size * self.itemsize
        ends += sequences * self.table // c.vocab_size
        return round(layers) + ends + sequences * seen * self._token

    def prefill_flops(self, tokens: int) -> int:
        """Multiplications and additions of reading a prompt, of which nothing is predicted.

        Of the last layer only keys and values are wanted; its queries are made with them.
        """
        c = self.config
        qkv = self.qkv_rows * c.hidden_size
        expert = 3 * c.hidden_size * c.intermediate_size
        rest = (self.width + c.num_local_experts) * c.hidden_size + c.num_experts_per_tok * expert
        products = tokens * (c.num_hidden_layers * qkv + (c.num_hidden_layers - 1) * rest)
        seen = sum(self.pairs(tokens, layer) for layer in range(c.num_hidden_layers - 1))
        return 2 * products + 4 * self.width * seen

    def pairs(self, tokens: int, layer: int) -> int:
        """Pairs of a query and a key that it sees, in a prompt of so many tokens."""
        window = self.config.sliding_window if self.config.is_sliding(layer) else tokens
        short = min(tokens, window)
        return short * (short + 1) // 2 + (tokens - short) * window

    @property
    def _token(self) -> int:
        """Bytes of a token's keys and values in one layer."""
        return 2 * self.config.num_key_value_heads * self.config.head_dim * self.itemsize

    def _kinds(self) -> tuple[int, int]:
        layers = range(self.config.num_hidden_layers)
        sliding = sum(self.config.is_sliding(layer) for layer in layers)
        return len(layers) - sliding, sliding
