"""What Unsloth's and transformers' ways of saving take besides; and the size of a file in words."""

import re
from typing import Any

NAMED_OTHERWISE = {
    "max_shard_bytes": "Pass max_shard_size.",
    "safe_serialization": "Weights are always written as safetensors: leave it out.",
    "tags": "The card names its tags; others are added on the hub: leave it out.",
    "first_conversion": "Each file is made of the model itself: leave it out.",
    "imatrix_file": "llama-quantize takes it, with an f16 file made here: leave it out.",
    "state_dict": "The model's own weights are written: leave it out.",
    "variant": "File names are those that every loader looks for: leave it out.",
    "datasets": "Nothing here is calibrated: leave it out.",
}

# Values that ask for what is done anyway; None: every value. Weights are streamed, tensor by
# tensor, so memory stays below any share and nothing waits on a disk for its turn.
NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "maximum_memory_usage": None,
    "temporary_location": None,
    "use_temp_dir": None,
    "is_main_process": (True,),
    "safe_serialization": (True, None),
    "save_peft_format": (True,),
    "state_dict": (None,),
    "variant": (None,),
    "tags": (None,),
    "first_conversion": (None,),
    "imatrix_file": (None,),
    "merge_is_disposable": (True,),
    "datasets": (None,),
    "calibration_dataset": (None,),
    "num_calibration_samples": None,
}

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def size_in_bytes(size: int | str) -> int:
    """Read a size as transformers does.

    Args:
      size: Bytes, or a number and its unit: "5GB", "200MB", "1.5GiB".

    Returns:
      Bytes.

    Raises:
      ValueError: It is no such size, or none above 0.
    """
    if isinstance(size, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B", size.strip().upper())
        value = int(float(found[1]) * UNITS[found[2] or ""]) if found else 0
    else:
        value = size
    if value < 1:
        raise ValueError(
            f"`max_shard_size` must be bytes, or a number with KB, MB or GB; got {size!r}. Pass "
            "'5GB', or leave it out."
        )
    return value
