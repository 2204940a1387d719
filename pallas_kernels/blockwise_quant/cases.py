"""Named shapes of rows to quantise, read by the tests and the benchmark."""

from dataclasses import dataclass

from pallas_kernels.blockwise_quant.contract import BLOCK


@dataclass(frozen=True, kw_only=True)
class Case:
    """L rows of N values.

    Attributes:
      back: The benchmark dequantises.
    """

    name: str
    L: int
    N: int
    signed: bool = True
    back: bool = False

    @property
    def moved_bytes(self) -> int:
        """Bytes that either way must move with float32 values: 5.016 a value."""
        blocks = -(-self.N // BLOCK)
        return self.L * (4 * self.N + blocks * (BLOCK + 4))


REAL_CASES = (
    Case(name="llama3_8b_gate", L=32, N=14336 * 16),  # a stack of LoRA's B, r = 16
    Case(name="llama3_8b_embedding", L=1, N=128256 * 4096),
    Case(name="llama3_8b_embedding_unsigned", L=1, N=128256 * 4096, signed=False),
    Case(name="llama3_8b_embedding_back", L=1, N=128256 * 4096, back=True),
)

ODD_CASES = (
    Case(name="one", L=1, N=1),
    Case(name="prime", L=3, N=257),
    Case(name="short_last_block", L=2, N=1500),
    Case(name="unsigned", L=2, N=1279, signed=False),
    Case(name="whole_blocks", L=2, N=2048),
)
