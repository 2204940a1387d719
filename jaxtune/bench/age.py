"""How long ago this process started."""

import os
import time
from pathlib import Path


def process_age(proc: Path = Path("/proc")) -> float | None:
    """Seconds since the process started, imports included.

    Args:
      proc: Where Linux tells, for machines without psutil.

    Returns:
      Seconds; None where nothing tells.
    """
    try:
        import psutil
    except ImportError:
        return _age_by_proc(proc)
    return time.time() - psutil.Process().create_time()


def _age_by_proc(proc: Path) -> float | None:
    """Uptime of the machine less the process's start, in `man proc`'s 22nd field, in ticks."""
    stat, uptime = proc / "self" / "stat", proc / "uptime"
    if not (stat.is_file() and uptime.is_file()):
        return None
    # The name of the program, in brackets, may hold blanks and brackets itself.
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return float(uptime.read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
