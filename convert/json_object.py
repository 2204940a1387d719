"""JSON objects from files that may be hostile: size, encoding, depth and repeated keys."""

import json
from pathlib import Path

from convert.errors import CheckpointError, broken, shown

# The limit that the safetensors library puts on a header; an index or a config is far smaller.
MAX_BYTES = 100_000_000


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a dict, refusing a key that stands twice (readers disagree about which one counts)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(repeated)} twice")
    return result


def parse_json_object(data: bytes, source: str) -> dict[str, object]:
    """Parse bytes that must be one JSON object.

    Args:
      data: UTF-8 text.
      source: What the bytes are, for the error.

    Returns:
      The object.

    Raises:
      CheckpointError: not UTF-8, not JSON, nested too deeply, a key stands twice, not an object.
    """
    cure = "The file is damaged or not what its name says: download or save it again."
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise broken(
            f"{source} must be JSON", got=shown(str(error)), wanted="a JSON object", cure=cure
        ) from error
    if not isinstance(value, dict):
        raise broken(
            f"{source} must be a JSON object",
            got=f"a {type(value).__name__}",
            wanted="an object, {...}",
            cure=cure,
        )
    return value


def read_json_object(file: Path) -> dict[str, object]:
    """Read a file that must hold one JSON object.

    Args:
      file: An existing file.

    Returns:
      The object.

    Raises:
      CheckpointError: over `MAX_BYTES`, or what `parse_json_object` refuses.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(
            f"A JSON file must be read whole; got {size} bytes in {file}; wanted at most "
            f"{MAX_BYTES}. This is no index or config that a hub model has: check its source."
        )
    return parse_json_object(file.read_bytes(), str(file))
