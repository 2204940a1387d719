"""What a model carries for its user's convenience."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
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
      generation_config: Its generation_config.json: defaults of `generate`.
      config_json: Its config.json with what loading changed in it; None for a model without files.
      folder: Where its files lie; None for a model without files.
      base_changes: Values of `hf_config` that loading changed, such as a stretched range; whoever
        uses the adapter elsewhere must load the base with them.
      vocabulary: Rows of the embedding, where tokens were added to the base's; else None.
      max_seq_length: Longest row in tokens that training will make; None: the model's range.
      adapter: Settings of the attached adapter, as written to `adapter_config.json`.
      adapter_request: What `get_peft_model` was asked for; None for an adapter that was read.
      full_finetuning: Every weight is trained; no adapter is added.
      mesh: Devices that hold the weights and share the rows; None: one device.
      auto_mesh: The mesh was chosen by the library, which may choose another.
      training: Gives the numbers of the run that trains it, for its card: {what: value}.
      auto_plan: The rematerialisation plan that was put by choice of the library, which may choose
        another; None: the user chose.
      random_state: Seed of what is drawn later, unless it is given then.
    """

    tokenizer: Any = None
    name_or_path: str = ""
    hf_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    generation_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    config_json: dict[str, Any] | None = None
    folder: Path | None = None
    base_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    vocabulary: int | None = None
    max_seq_length: int | None = None
    adapter: Any = None
    adapter_request: Any = None
    full_finetuning: bool = False
    mesh: Any = None
    auto_mesh: bool = False
    training: Callable[[], dict[str, str]] | None = None
    auto_plan: str | None = None
    random_state: int = 3407

    def __eq__(self, other: object) -> bool:
        """Equal to every other."""
        return isinstance(other, Carried)

    def __hash__(self) -> int:
        """One value for all."""
        return hash(Carried)
