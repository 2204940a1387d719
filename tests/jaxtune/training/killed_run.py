"""A run that its test kills: it goes on from whatever checkpoints it finds, and ends by itself.

The first process imports everything and touches no device. For each folder that it reads it forks a
process that trains there; so a kill costs a compilation, and not the imports too.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

from jaxtune import SFTTrainer, TrainerCallback
from tests.jaxtune.training.runs import adapted_in, trainer_of


class Announces(TrainerCallback):
    """Prints a line after the first step."""

    begun = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.begun:
            print("begun", flush=True)
        self.begun = True


def trainer_in(folder: Path, adapter: Path, steps: int) -> SFTTrainer:
    """The trainer of each of the processes, and of the run that they must equal together."""
    return trainer_of(
        adapted_in(adapter),
        max_steps=steps,
        optim="adamw_8bit",
        output_dir=folder,
        save_steps=1,
        save_total_limit=2,
        callbacks=[Announces()],
    )


def main() -> None:
    """Fork for each folder on a line of the input: print the child's number, then how it ended."""
    adapter, steps = Path(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")  # of forking with jax imported: nothing of it has started
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            # As a shell starts a program, whatever the parent of this one does with the signals.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            folder = Path(line.strip())
            with jax.default_matmul_precision("highest"):
                held = any(folder.glob("checkpoint-*"))
                trainer_in(folder, adapter, steps).train(resume_from_checkpoint=held)
            os._exit(0)
        print(child, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
