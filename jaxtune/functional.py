"""For JAX scripts of one's own: a model as a structure and two pytrees.

graphdef, trainable, frozen = split(model)
step = make_train_step(graphdef, tx)
trainable, opt_state, metrics = step(trainable, tx.init(trainable), frozen, batch)
model = merge(graphdef, trainable, frozen)
"""

from jaxtune.adapters.peft_form import peft_names as peft_names
from jaxtune.data.batch import Batch as Batch
from jaxtune.training.step import loss as loss
from jaxtune.training.step import make_train_step as make_train_step
from jaxtune.training.step import merge as merge
from jaxtune.training.step import split as split

__all__ = ["Batch", "loss", "make_train_step", "merge", "peft_names", "split"]
