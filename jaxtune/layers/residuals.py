"""Names of what a layer's backward pass reads: a plan keeps what it names, and redoes the rest."""

import jax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention import OUTPUT_NAME, STATISTICS_NAME
from pallas_kernels.lora_linear import INNER_NAME

QUERY, KEY, VALUE = "query", "key", "value"
ATTENTION_PROJECTION = "attention_projection"  # read by a norm that follows it
MIDDLE = "middle"  # the residual stream between attention and MLP
GATE, UP = "gate", "up"
MLP_PROJECTION = "mlp_projection"  # read by a norm that follows it

KEPT = (
    QUERY,
    KEY,
    VALUE,
    OUTPUT_NAME,
    STATISTICS_NAME,
    ATTENTION_PROJECTION,
    MIDDLE,
    GATE,
    UP,
    MLP_PROJECTION,
    INNER_NAME,
)
# What each plan keeps of a layer, beside its input; cuDNN's attention has no names, see `run`.
ATTENTION = (OUTPUT_NAME, STATISTICS_NAME)
PLANS = {
    "none": KEPT,
    "gate_up": (*ATTENTION, GATE, UP, MLP_PROJECTION, INNER_NAME),
    "attention": (*ATTENTION, INNER_NAME),
    "full": (),
    "offload": (),
    "least": (),
}
MLP_PIECES = 4  # of a row in the plan "least"
OFFLOADING = ("offload", "least")  # the layer's input goes to the host's memory
EMBEDDING_ON_HOST = ("least",)  # a frozen one, whose rows the host looks up


def named(x: jax.Array, name: str) -> jax.Array:
    """The same array, which a rematerialisation plan can keep by its name."""
    return checkpoint_name(x, name)
