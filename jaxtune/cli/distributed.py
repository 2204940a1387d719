"""Whether a program is one of several processes of a run, and how they meet: the environment's say.

The library takes arguments alone; a program may look at what its launcher has set.
"""

import os
import signal
from collections.abc import Mapping

from jaxtune import processes
from jaxtune.cli.train_options import Train

# For the coordinator, the number of processes and that of this one: what launchers set, in the
# order in which it counts. JAX finds the coordinator of SLURM and of Open MPI before 5 by itself.
_ADDRESS = ("JAX_COORDINATOR_ADDRESS",)
_COUNT = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_NUMBER = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_STEP = "SLURM_STEP_NODELIST"  # only `srun` sets it: a batch script's own shell is one process


def join_if_told(options: Train, environment: Mapping[str, str] = os.environ) -> None:  # noqa: TID251
    """Meet the other processes, if an option or the launcher says that there are some.

    Args:
      options: Of the command line.
      environment: Of the process.

    Raises:
      ValueError: What was said is not enough to find the others.
      ConnectionError: They cannot be reached.
    """
    found = launched(environment)
    address = options.coordinator_address or found[0]
    count = found[1] if options.num_processes is None else options.num_processes
    number = found[2] if options.process_id is None else options.process_id
    told = options.distributed or address is not None or (count or 1) > 1
    if not told:
        return
    try:
        processes.join(address, count, number, heartbeat_timeout=options.heartbeat_timeout)
    except ValueError as error:
        raise ValueError(
            "several processes need --coordinator-address, --num-processes and --process-id where "
            f"no launcher says them; got {address}, {count} and {number} ({error}). Pass all "
            "three, start the program by srun or mpirun, or leave --distributed out."
        ) from error
    # JAX takes SIGTERM for a notice of its own, after which nothing would end this program.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def launched(environment: Mapping[str, str]) -> tuple[str | None, int | None, int | None]:
    """What a launcher says: the coordinator's address, how many processes, and which this is.

    Args:
      environment: Of the process.

    Returns:
      Each, or None.
    """
    if _STEP not in environment:
        environment = {k: v for k, v in environment.items() if not k.startswith("SLURM_")}
    said = [
        next((environment[name] for name in names if environment.get(name)), None)
        for names in (_ADDRESS, _COUNT, _NUMBER)
    ]
    address, count, number = said
    return address, None if count is None else int(count), None if number is None else int(number)
