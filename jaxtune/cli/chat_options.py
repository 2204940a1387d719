"""The options of `jaxtune chat`; imports no jax."""

import dataclasses
from typing import Annotated

from tyro.conf import Positional, arg

Number = float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk to a model, or to an adapter on its base, in the terminal.

    Each line is a question, and the answer appears while it is made. Two lines are commands:
      /reset  forgets what was said
      /quit   ends

    Questions can come from a pipe too:
      echo "What is LoRA?" | jaxtune chat outputs

    Attributes:
      model: Folder or hub id, of a model or of an adapter.
      base: Folder or hub id of the adapter's base; by default the one that the adapter names.
      system: What the model is told before the first question.
      chat_template: Chat template by name, such as llama-3 or chatml; else the tokenizer's own.
      max_new_tokens: Longest answer, tokens.
      temperature: Above 0 answers are drawn, 0 takes the likeliest word; by default as the model's
        files say.
      top_p: Draw from the likeliest words of this probability alone.
      top_k: Draw from this many likeliest words alone.
      min_p: Leave out words less likely than this share of the likeliest.
      repetition_penalty: Above 1, words that were said become less likely.
      seed: Of the draws.
      load_in_4bit: Hold the weights in 4 bits; else in 16.
      max_seq_length: Longest conversation in tokens; by default the model's range.
      dtype: bfloat16, float16 or float32; by default what the device computes fast.
      kernels: Backend of every operation: auto, or xla for plain JAX.
      local_files_only: Use what is downloaded already, and no network.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    base: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    system: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None
    chat_template: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    max_new_tokens: Annotated[int, arg(metavar="N")] = 512
    temperature: Annotated[Number, arg(metavar="X", help_behavior_hint="")] = None
    top_p: Annotated[Number, arg(metavar="X", help_behavior_hint="")] = None
    top_k: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    min_p: Annotated[Number, arg(metavar="X", help_behavior_hint="")] = None
    repetition_penalty: Annotated[Number, arg(metavar="X", help_behavior_hint="")] = None
    seed: Annotated[int, arg(metavar="N")] = 3407
    load_in_4bit: bool = True
    max_seq_length: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    dtype: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    kernels: Annotated[str, arg(metavar="NAME")] = "auto"
    local_files_only: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        for name, value, least in (
            ("max-new-tokens", self.max_new_tokens, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ValueError(f"--{name} must be >= {least}; got {value}.")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"--temperature must be >= 0; got {self.temperature}.")

    @property
    def draws(self) -> bool | None:
        """Whether answers are drawn; None: as the model's files say."""
        if self.temperature is not None:
            return self.temperature > 0
        asked = (self.top_p, self.top_k, self.min_p)
        return True if any(value is not None for value in asked) else None
