"""Where a checkpoint's files hold what transformers' modules call by another name.

Multimodal Gemma-3 has the modules `model.language_model`, `model.vision_tower` and `lm_head`, but
its files keep the names of the first release. PEFT's adapters use the modules' names.
Source: https://github.com/huggingface/transformers `conversion_mapping.py` @ v5.24 ("llava",
"LlavaModel", "CLIPVisionModel").
"""

from collections.abc import Container, Iterable

_TEXT = "language_model."  # begins the names of the text part in multimodal files

# Beginning of a module's name -> beginning of the file's.
_RENAMED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def file_name(tensor: str, held: Container[str]) -> str | None:
    """Find the name under which a checkpoint's files hold a tensor.

    Args:
      tensor: Its name in transformers' module tree, `model.layers.0.self_attn.q_proj.weight`.
      held: The names in the files, as `Checkpoint.names`.

    Returns:
      `tensor` itself where the files have it, else the name that multimodal files use for it; None
      where they have neither.
    """
    renamed = (new + tensor.removeprefix(old) for old, new in _RENAMED if tensor.startswith(old))
    return next((name for name in (tensor, *renamed) if name in held), None)


def added_name(name: str, held: Iterable[str]) -> str:
    """Find the name that a tensor gets which a checkpoint does not have: a head that left its tie.

    Args:
      name: transformers', such as `lm_head.weight`.
      held: Names of the checkpoint's tensors.

    Returns:
      The name, after the prefix of the text part where the files have one.
    """
    return f"{_TEXT}{name}" if any(other.startswith(_TEXT) for other in held) else name
