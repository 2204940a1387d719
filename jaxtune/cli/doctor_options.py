"""The options of `jaxtune doctor`: none; imports no jax."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look at this machine, and say what is wrong and what to do about it.

    Device and driver, which kernels will be used and why, memory, compile cache, versions, missing
    extras. Nothing is downloaded or changed. The exit status is 1 if something is broken.
    """
