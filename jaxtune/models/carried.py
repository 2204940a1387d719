"""What a model carries for its user's convenience."""

import dataclasses
from typing import Any


@dataclasses.dataclass(eq=False)
class Carried:
    """Tokenizer, origin and adapter settings of a model; no part of its maths.

    All instances compare equal: nnx compares a module's plain attributes when a compiled program
    is looked up, and a tokenizer must not cause a compilation.

    Attributes:
      tokenizer: The tokenizer that was loaded with the model, or None.
      name_or_path: What the user asked for; written as the adapter's base.
      hf_config: The checkpoint's configuration, in transformers' dictionary form.
      max_seq_length: Longest row in tokens that training will make; None: the model's range.
      adapter: Settings of the attached adapter, as written to `adapter_config.json`.
    """

    tokenizer: Any = None
    name_or_path: str = ""
    hf_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_seq_length: int | None = None
    adapter: Any = None

    def __eq__(self, other: object) -> bool:
        """Equal to every other."""
        return isinstance(other, Carried)

    def __hash__(self) -> int:
        """One value for all."""
        return hash(Carried)
