"""From a byte of codes to two table values, and rounding, in few instructions of a GPU.

A look-up in memory costs two instructions for its address beside the load and those that cut a
byte in two. Here a warp's lanes hold the table, and a shuffle reads lane `code`, of which it takes
the last four bits: a shift and a shuffle a value. Interpreted, both are plain JAX.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.pallas_triton import plt

SHUFFLES = True  # False: look-ups in memory, as in `nf4.triton`


def _shuffles(shift: int) -> str:
    """One nibble of each of the 4 bytes in $4; $5 to $8 are all the lane's table value."""
    lines = [
        f"shr.u32 code, $4, {shift + 8 * byte};\n"
        f"shfl.sync.idx.b32 ${byte}, $5, code, 0x101f, 0xffffffff;"
        for byte in range(4)
    ]
    return "\n".join(["{", ".reg .b32 code;", *lines, "}"])


# Two float32 to bfloat16 and back by one conversion; one at a time they are four times slower.
_ROUND = """{
.reg .b32 pair;
cvt.rn.bf16x2.f32 pair, $3, $2;
shl.b32 $0, pair, 16;
and.b32 $1, pair, 0xffff0000;
}"""


def lane_values(table_ref: jax.Ref, interpret: bool) -> Array | None:
    """The table as `look_up` wants it: each lane its own value, [1, 1, 1].

    To Triton all lanes hold one value, so nothing but `look_up` may read it. None: no shuffles.
    """
    if interpret or not SHUFFLES:
        return None
    (lane,) = plt.elementwise_inline_asm(
        "mov.u32 $0, %laneid;",
        args=[jnp.zeros((1, 1, 1), jnp.int32)],
        constraints="=r,r",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct((1, 1, 1), jnp.int32)],
    )
    return plt.load(table_ref.at[lane & 15])


def look_up(packed: Array, table_ref: jax.Ref, lanes: Array | None) -> tuple[Array, Array]:
    """The table's values of the high and of the low nibbles of some bytes, float32."""
    if lanes is None:
        codes = packed.astype(jnp.int32)
        return plt.load(table_ref.at[codes >> 4]), plt.load(table_ref.at[codes & 15])
    values = []
    for shift in (4, 0):
        values += plt.elementwise_inline_asm(
            _shuffles(shift),
            args=[packed, jnp.broadcast_to(lanes, packed.shape)],
            constraints="=f,=f,=f,=f,r,f,f,f,f",
            pack=4,
            result_shape_dtypes=[jax.ShapeDtypeStruct(packed.shape, jnp.float32)],
        )
    high, low = values
    return high, low


def round_to_bfloat16(x: Array) -> Array:
    """Round float32 to bfloat16 and back; compiled only."""
    (rounded,) = plt.elementwise_inline_asm(
        _ROUND,
        args=[x],
        constraints="=f,=f,f,f",
        pack=2,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
    )
    return rounded
