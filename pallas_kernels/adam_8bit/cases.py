"""Named shapes of parameters, read by the tests and the benchmark."""

from dataclasses import dataclass

from pallas_kernels.blockwise_quant.contract import BLOCK


@dataclass(frozen=True, kw_only=True)
class Case:
    """L tensors of N elements."""

    name: str
    L: int
    N: int

    @property
    def moved_bytes(self) -> int:
        """Bytes that a step must move in float32: 16.06 an element.

        p and g read, the change of p written; codes and absmax of both moments read and written.
        """
        blocks = -(-self.N // BLOCK)
        return self.L * (12 * self.N + 4 * blocks * (BLOCK + 4))


REAL_CASES = (
    Case(name="llama3_8b_lora_gate_b", L=32, N=14336 * 16),
    Case(name="llama3_8b_embedding", L=1, N=128256 * 4096),
)

ODD_CASES = (
    Case(name="one", L=1, N=1),
    Case(name="prime", L=3, N=257),
    Case(name="short_last_block", L=2, N=1500),
    Case(name="whole_blocks", L=2, N=2048),
)
