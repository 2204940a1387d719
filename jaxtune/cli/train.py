"""`jaxtune train`: rows and model to an adapter, by the trainer of the Python interface."""

import contextlib
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import jax

from jaxtune import FastLanguageModel, SFTTrainer, get_chat_template, memory_stats, processes
from jaxtune import train_on_responses_only as mask_questions
from jaxtune.cli.data_source import check_writable, load_rows
from jaxtune.cli.train_options import LAST, LONGEST_ROW, Train
from jaxtune.console import say
from jaxtune.errors import NonFiniteLossError
from jaxtune.language_model import LanguageModel
from jaxtune.machine import first_line, probe
from jaxtune.optim.registry import create_optimizer
from jaxtune.optim.schedules import create_schedule
from jaxtune.training.resume import find_checkpoint

NO_MEMORY = "RESOURCE_EXHAUSTED"
ADAPTER_FILE = "adapter_config.json"


def run(options: Train) -> int:
    """Train, and write what was trained.

    Args:
      options: Of the command line.

    Returns:
      The exit status: 0, or 1 if the loss became NaN or infinite.

    Raises:
      ValueError: The model or the rows do not serve, or the device's memory is too small.
      OSError: A file is not there, or the folder is not to be written to.
    """
    _join(options)
    with contextlib.ExitStack() as stack:
        if not processes.is_first():
            silence = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        return _run(options)


def _run(options: Train) -> int:
    """What `run` does once the processes have met; the first one alone prints."""
    output = Path(options.args.output_dir or "")
    check_writable(output, "--output-dir")
    _check_names(options)
    resumed: Any = options.resume_from_checkpoint
    resumed = True if resumed == LAST else resumed
    find_checkpoint(resumed, output)
    rows, held_out = _rows(options)
    say(first_line(probe()), "")
    say(f"Loading {options.model}")
    try:
        return _train(options, output, rows, held_out, resumed)
    except NonFiniteLossError as error:
        say("", f"jaxtune: {error}")
        return 1
    except KeyboardInterrupt:
        if options.args.saves != "no":
            say("", "Go on later with the same command and --resume-from-checkpoint last.")
        raise
    except jax.errors.JaxRuntimeError as error:
        if NO_MEMORY not in str(error):
            raise
        raise ValueError(
            "a step must fit into the device's memory, and this one does not. Try "
            "--use-gradient-checkpointing unsloth, --per-device-train-batch-size 1 with a larger "
            "--gradient-accumulation-steps, or a shorter --max-length."
        ) from error


def _join(options: Train) -> None:
    """Meet the other processes, if there are some."""
    where = options.coordinator_address, options.num_processes, options.process_id
    if not options.distributed and where == (None, None, None):
        return
    try:
        processes.join(*where, heartbeat_timeout=options.heartbeat_timeout)
    except ValueError as error:
        raise ValueError(
            "several processes need --coordinator-address, --num-processes and --process-id where "
            f"no launcher says them; got {where[0]}, {where[1]} and {where[2]} ({error}). Pass all "
            "three, start the program by srun or mpirun, or leave --distributed out."
        ) from error
    # JAX takes SIGTERM for a notice of its own, after which it would not end this program.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_names(options: Train) -> None:
    """Refuse an optimizer or a schedule that there is none of, before a model is loaded for it."""
    args = options.args
    create_schedule(args.lr_scheduler_type, args.learning_rate, 0, 1, args.lr_scheduler_kwargs)
    create_optimizer(args.optim, lambda _: args.learning_rate)


def _rows(options: Train) -> tuple[Any, Any]:
    """The rows to train on, and those of evaluations or None."""
    rows = load_rows(
        options.dataset,
        options.dataset_train_split,
        option="--dataset",
        config=options.dataset_config,
    )
    if options.eval_dataset is None:
        return rows, None
    held_out = load_rows(
        options.eval_dataset,
        options.dataset_test_split,
        option="--eval-dataset",
        config=options.dataset_config,
    )
    return rows, held_out


def _train(options: Train, output: Path, rows: Any, held_out: Any, resumed: Any) -> int:
    model, tokenizer = _model(options)
    if options.chat_template is not None:
        tokenizer = get_chat_template(tokenizer, options.chat_template)
    args = options.args
    if args.row_limit is None:
        limit = min(LONGEST_ROW, model.config.max_position_embeddings)
        args = dataclasses.replace(args, max_length=limit)
    before = memory_stats()
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows,
        eval_dataset=held_out,
        args=args,
    )
    if options.train_on_responses_only:
        trainer = mask_questions(trainer)
    stats = trainer.train(resume_from_checkpoint=resumed)
    trainer.save_model()
    seconds = stats.metrics["train_runtime"]
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    fell = f", loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last" if losses else ""
    say("", f"{trainer.state.global_step} steps, {seconds:.0f} s of training{fell}.")
    say(*memory_stats().lines(before)[:2])
    say("", *_what_next(output))
    return 0


def _model(options: Train) -> tuple[LanguageModel, Any]:
    """The model with something to train in it, and its tokenizer."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        options.model,
        max_seq_length=options.args.row_limit,
        dtype=options.dtype,
        load_in_4bit=options.load_in_4bit,
        full_finetuning=options.full_finetuning,
        revision=options.revision,
        use_gradient_checkpointing=_named(options.use_gradient_checkpointing),
        random_state=options.random_state,
        kernels=options.kernels,
        mesh=_mesh(options),
        local_files_only=options.local_files_only,
    )
    if model.carried.adapter is not None:
        say(f"{options.model} is an adapter, and is trained on as it is.")
    elif not options.full_finetuning:
        model = FastLanguageModel.get_peft_model(
            model,
            r=options.r,
            target_modules=options.targets,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            bias=options.bias,
            layers_to_transform=options.layers_to_transform or None,
            finetune_last_n_layers=options.finetune_last_n_layers,
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            modules_to_save=options.modules_to_save or None,
        )
    model.print_trainable_parameters()
    return model, tokenizer


def _mesh(options: Train) -> Any:
    """What `mesh` or `devices` says; without either one device, or those of all processes."""
    mesh, devices, there = options.args.mesh, options.devices, jax.device_count()
    several = processes.count() > 1
    if devices is None:
        return "auto" if mesh is None and several else mesh
    if mesh is not None:
        raise ValueError(
            f"--devices and --mesh both say where to train; got {devices} and {mesh}. Pass one of "
            "them."
        )
    if devices > there or (several and devices != there):
        rule = "those of all processes," if several else "at most those that JAX sees,"
        raise ValueError(f"--devices must be {rule} {there}; got {devices}. Leave it out.")
    return {"data": devices} if devices > 1 else None


def _named(choice: str) -> bool | str:
    """True and False as other programs have them; else a plan by name."""
    return {"true": True, "false": False}.get(choice.lower(), choice)


def _what_next(output: Path) -> list[str]:
    """What can be done with the folder."""
    if not (output / ADAPTER_FILE).is_file():
        return [f"The model is in {output}/.", f"    jaxtune chat {output}"]
    return [
        f"The adapter is in {output}/. Now, for example:",
        f"    jaxtune chat {output}",
        f"    jaxtune export merged {output} merged",
        f'    peft.PeftModel.from_pretrained(base, "{output}")   # in Python, with PyTorch',
    ]
