"""What a launcher (srun, mpirun, or whoever sets JAX's variables) says, as options; imports no jax.

The library takes arguments alone, and only the program looks at its environment.
"""

from collections.abc import Mapping

# Where each option's value stands, in the order in which it counts. JAX finds the coordinator of
# SLURM, and of Open MPI before 5, by itself.
_SAID = {
    "--coordinator-address": ("JAX_COORDINATOR_ADDRESS",),
    "--num-processes": ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"),
    "--process-id": ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"),
}
_STEP = "SLURM_STEP_NODELIST"  # only `srun` sets it: a batch script's own shell is one process


def launcher_options(environment: Mapping[str, str]) -> list[str]:
    """The options of `jaxtune train` that a launcher gives to one of several processes.

    Args:
      environment: Of the process.

    Returns:
      Words of a command line; none for a process alone.
    """
    held = {
        name: value
        for name, value in environment.items()
        if value and (_STEP in environment or not name.startswith("SLURM_"))
    }
    said = {
        option: next((held[name] for name in names if name in held), None)
        for option, names in _SAID.items()
    }
    if said["--coordinator-address"] is None and said["--num-processes"] in (None, "1"):
        return []
    given = [f"{option}={value}" for option, value in said.items() if value is not None]
    return ["--distributed", *given]
