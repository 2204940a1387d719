"""The options of `jaxtune train`; imports no jax."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from jaxtune.training.config import UnslothTrainingArguments

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAST = "last"
LONGEST_ROW = 2048  # tokens, where nothing else is said
Training = Annotated[UnslothTrainingArguments, tyro.conf.OmitArgPrefixes, arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Fine-tune a model on your rows with LoRA, and write the adapter.

    Rows are texts, chats, prompts with completions, or token ids:
      jaxtune train --model unsloth/Llama-3.2-1B-Instruct --dataset chats.jsonl

    Options can stand in a file, and those given here win:
      jaxtune train --config run.yaml --learning-rate 1e-4

    Attributes:
      model: Hub id or folder of the model, or of an adapter to train on.
      dataset: File (.jsonl, .json, .csv, .parquet, .txt), folder of such files, or hub id.
      config: YAML file of options, such as "learning_rate: 2e-4"; options given here win.
      dataset_config: Name of a configuration of a hub data set.
      dataset_train_split: Split of a hub data set to train on.
      eval_dataset: Rows to evaluate on: a file, or a hub id; goes with --eval-strategy.
      dataset_test_split: Split of a hub data set to evaluate on.
      chat_template: Chat template by name, such as llama-3 or chatml; else the tokenizer's own.
      train_on_responses_only: Learn the answers of a chat alone, not the questions.
      load_in_4bit: Hold the frozen weights in 4 bits (QLoRA); else in 16 (LoRA).
      full_finetuning: Train every weight, without an adapter.
      dtype: bfloat16, float16 or float32; by default what the device computes fast.
      use_gradient_checkpointing: What the backward pass computes again: auto, unsloth (from inputs
        kept in host memory: least memory), full, or none (most memory, fastest).
      kernels: Backend of every operation: auto, or xla for plain JAX.
      devices: GPUs that share the rows of a step; each holds the weights. Those of all hosts where
        there are several processes.
      distributed: This is one of several processes, on one host or more, that train together; as
        if said where srun, mpirun or JAX_COORDINATOR_ADDRESS says it (docs/scaling.md).
      coordinator_address: Where process 0 listens, as host:port; srun says it.
      num_processes: How many processes there are; srun and mpirun say it.
      process_id: Number of this one, from 0; likewise.
      heartbeat_timeout: Seconds of silence after which a process counts as dead, and all end.
      revision: Branch, tag or commit of a hub model.
      local_files_only: Use what is downloaded already, and no network.
      r: Rank of the adapter.
      lora_alpha: Its strength: the adapter is scaled by lora_alpha / r.
      lora_dropout: Share of the adapter's inputs that are dropped in training.
      target_modules: Projections to adapt; or all-linear, or one regular expression.
      bias: Biases to train: none, all or lora_only.
      use_rslora: Scale by lora_alpha / sqrt(r).
      use_dora: Train the length of each adapted row too (DoRA).
      modules_to_save: Modules to train whole, such as embed_tokens lm_head.
      layers_to_transform: Layers to adapt, counted from 0; by default all.
      finetune_last_n_layers: Adapt the last N layers alone.
      random_state: Seed of the adapter's first values.
      resume_from_checkpoint: "last" goes on from the newest checkpoint in --output-dir; or the
        folder of one.
      args: How it is trained.
    """

    model: Annotated[str, arg(metavar="NAME")]
    dataset: Annotated[str, arg(metavar="FILE|NAME")]
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    dataset_config: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    dataset_train_split: Annotated[str, arg(metavar="NAME")] = "train"
    eval_dataset: Annotated[str | None, arg(metavar="FILE|NAME", help_behavior_hint="")] = None
    dataset_test_split: Annotated[str, arg(metavar="NAME")] = "test"
    chat_template: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    train_on_responses_only: bool = False
    load_in_4bit: bool = True
    full_finetuning: bool = False
    dtype: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    use_gradient_checkpointing: Annotated[str, arg(metavar="NAME")] = "auto"
    kernels: Annotated[str, arg(metavar="NAME")] = "auto"
    devices: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    distributed: bool = False
    coordinator_address: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint="")] = (
        None
    )
    num_processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    process_id: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    heartbeat_timeout: Annotated[int, arg(metavar="SECONDS")] = 100
    revision: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    local_files_only: bool = False
    r: Annotated[int, arg(metavar="N")] = 16
    lora_alpha: Annotated[int | float, arg(metavar="N")] = 16
    lora_dropout: Annotated[int | float, arg(metavar="N")] = 0.0
    target_modules: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = PROJECTIONS
    bias: Annotated[str, arg(metavar="NAME")] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ()
    layers_to_transform: Annotated[
        tuple[int, ...], arg(metavar="N [N ...]", help_behavior_hint="")
    ] = ()
    finetune_last_n_layers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    random_state: Annotated[int, arg(metavar="N")] = 3407
    resume_from_checkpoint: Annotated[
        str | None, arg(metavar="last|FOLDER", help_behavior_hint="")
    ] = None
    args: Training = dataclasses.field(default_factory=UnslothTrainingArguments)

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        for name, value, least in (
            ("r", self.r, 1),
            ("devices", self.devices, 1),
            ("num-processes", self.num_processes, 1),
            ("process-id", self.process_id, 0),
            ("heartbeat-timeout", self.heartbeat_timeout, 10),
        ):
            if value is not None and value < least:
                raise ValueError(f"--{name} must be >= {least}; got {value}.")
        if self.eval_dataset is not None and self.args.eval_strategy == "no":
            raise ValueError(
                "--eval-dataset needs to know when: --eval-strategy is no. Add --eval-strategy "
                "steps or --eval-strategy epoch."
            )
        if self.full_finetuning and self.use_dora:
            raise ValueError("--use-dora is of adapters, and --full-finetuning has none.")
        if self.args.saves == "no" and self.resume_from_checkpoint == LAST:
            raise ValueError(
                "--resume-from-checkpoint last needs checkpoints; --save-strategy is no. Name the "
                "folder of one, or leave --save-strategy out."
            )

    @property
    def targets(self) -> list[str] | str:
        """The targets as `get_peft_model` takes them: names, or one expression."""
        (first, *more) = self.target_modules or ("",)
        expression = first == "all-linear" or not first.replace(".", "_").isidentifier()
        return first if expression and not more else list(self.target_modules)
