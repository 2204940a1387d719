"""Twenty steps beside TRL's trainer, large ones, over rows of very unequal length.

At a rate of 2e-4 over random weights with B = 0 the loss hardly moves and any fault passes: here it
must fall, and what a wrong mean, a shifted label or a missing weight decay does must be seen.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxtune import SFTConfig, SFTTrainer, train_on_responses_only
from jaxtune.adapters.peft_form import peft_names
from jaxtune.training.step import split
from tests.families import VARIANTS
from tests.loaded import load_adapted
from tests.oracles import ALL_PROJECTIONS, make_oracle
from tests.tolerances import tolerance
from tests.trl_runs import run_trl
from tests.words import WORDS, word_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.parity]
STEPS = 20
LOSS = tolerance("float32", "trl_20_losses")
UPDATE = tolerance("float32", "trl_20_update")
SHARED: dict[str, Any] = {
    "max_steps": STEPS,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "seed": 5,
    "logging_steps": 1,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
}
PADDED = {"resplit": False}  # one shape, which compiles faster
ACCUMULATION = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
# The rows of a run, our options, and TRL's where they are others.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text": ("text", PADDED, {}),
    "packed": ("text", {"packing": True, "max_length": 64, "per_device_train_batch_size": 2}, {}),
    "padding-free": ("text", {"padding_free": True}, {"max_length": None}),
    "completion-only": ("pairs", {**PADDED, "completion_only_loss": True}, {}),
    "responses-only": ("chats", PADDED, {}),
    "accumulation": ("text", {**ACCUMULATION, **PADDED}, {}),
    "accumulation, re-split": ("text", ACCUMULATION, {}),
}
OURS_ALONE = ("resplit",)
REPEATED = ("stories", "accumulation, re-split")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with an adapter.

    Attributes:
      adapter: Folder of the adapter; its base is named in it.
      tokenizer: Of transformers.
      words: That rows are made of.
      markers: Texts that open a question and an answer.
    """

    adapter: Path
    tokenizer: Any
    words: str
    markers: tuple[str, str]

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Twelve rows of 2 to 25 words, by turns short and long."""
        draw = np.random.default_rng(3)

        def text(count: int) -> str:
            return " ".join(draw.choice(self.words.split()[:20], count))

        lengths = [int(n) for n in draw.permutation([2, 3, 4, 2, 5, 3, 20, 22, 24, 25, 18, 23])]
        if kind == "text":
            return [{"text": text(n)} for n in lengths]
        if kind == "pairs":
            return [{"prompt": text(6), "completion": f" {text(n)}"} for n in lengths]
        ask, answer = self.markers
        return [
            {
                "text": f"{ask} {text(3)} {answer} {text(n // 2)} "
                f"{ask} {text(4)} {answer} {text(n // 2 + 1)}"
            }
            for n in lengths
        ]

    def labelled(self) -> list[dict[str, Any]]:
        """The rows of chats as ids and labels, told by the characters of the answers."""
        rows = []
        ask, answer = self.markers
        for row in self.rows("chats"):
            text = row["text"]
            encoded = self.tokenizer(text, return_offsets_mapping=True)
            ids = [*encoded["input_ids"], self.tokenizer.eos_token_id]
            spans, at = [], 0
            while (start := text.find(answer, at)) >= 0:
                at = text.find(ask, start)
                at = len(text) + 2 if at < 0 else at  # EOS stands behind the text
                spans.append((start + len(answer), at - 1))  # the space before a marker is its own
            inside = [
                any(begin < stop and end > start for start, stop in spans)
                for begin, end in [*encoded["offset_mapping"], (len(text), len(text) + 1)]
            ]
            labels = [token if kept else -100 for token, kept in zip(ids, inside, strict=True)]
            rows.append({"input_ids": ids, "labels": labels})
        return rows


def save_adapter(base: Path, folder: Path) -> Path:
    """A LoRA over a checkpoint, with a B that is not zero."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ALL_PROJECTIONS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Case:
    variant = next(variant for variant in VARIANTS if variant.name.startswith("gemma2"))
    folder = tmp_path_factory.mktemp("gemma")
    oracle = make_oracle(variant, folder, initializer_range=0.3)
    return Case(oracle.adapter_folder, word_tokenizer(), " ".join(WORDS), ("w91", "w92"))


@pytest.fixture(scope="module")
def stories(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    base = assets / "stories260K"
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    words = "one day a girl saw the big red ball and her dog was happy to play in it"
    adapter = save_adapter(base, tmp_path_factory.mktemp("stories"))
    return Case(adapter, tokenizer, words, ("Question:", "Answer:"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A model this small gains nothing by more threads, and loses much where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Run:
    """Losses of the steps, and the adapter's tensors after the last, by PEFT's names."""

    losses: np.ndarray
    tensors: dict[str, np.ndarray]


def losses_of(trainer: Any) -> np.ndarray:
    records = trainer.state.log_history
    return np.array([float(record["loss"]) for record in records if "loss" in record])


@functools.cache
def trl_run(case: Case, kind: str, folder: Path) -> Run:
    rows, options, theirs = KINDS[kind]
    options = {**SHARED, **options, **theirs}
    base = peft.PeftConfig.from_pretrained(case.adapter).base_model_name_or_path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own run; nothing of ours warns here
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype="float32", attn_implementation="eager"
        )
        trainer = run_trl(
            peft.PeftModel.from_pretrained(model, case.adapter, is_trainable=True),
            case.labelled() if rows == "chats" else case.rows(rows),
            case.tokenizer,
            folder,
            **{name: value for name, value in options.items() if name not in OURS_ALONE},
        )
    state = peft.get_peft_model_state_dict(trainer.model)
    return Run(losses_of(trainer), {name: leaf.numpy().copy() for name, leaf in state.items()})


def our_run(case: Case, kind: str, rows: Any = None, tx: Any = None, **changes: Any) -> Run:
    source, options, _ = KINDS[kind]
    model = load_adapted(case.adapter)
    trainer = SFTTrainer(
        model,
        SFTConfig(**{**SHARED, **options, "disable_tqdm": True, **changes}),
        train_dataset=case.rows(source) if rows is None else rows,
        tokenizer=case.tokenizer,
        optimizers=(tx, None),
    )
    if source == "chats" and rows is None:
        ask, answer = case.markers
        train_on_responses_only(trainer, ask, answer, force_match=False)
    trainer.train()
    tensors = peft_names(split(model)[1])
    return Run(losses_of(trainer), {name: np.asarray(leaf) for name, leaf in tensors.items()})


def apart(case: Case, ours: Run, theirs: Run) -> tuple[float, float]:
    """How far the losses, and the ways that the parameters went, are apart."""
    loss = float(np.abs(ours.losses / theirs.losses - 1).max())
    start = load_file(case.adapter / "adapter_model.safetensors")
    assert ours.tensors.keys() == theirs.tensors.keys() == start.keys()
    off = sum(float(((ours.tensors[n] - theirs.tensors[n]) ** 2).sum()) for n in start)
    way = sum(float(((theirs.tensors[n] - start[n]) ** 2).sum()) for n in start)
    return loss, (off / way) ** 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trl")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("gemma", "stories") for kind in KINDS if (name, kind) != REPEATED],
)
def test_losses_and_updates_are_those_of_trl(
    name: str, kind: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(name)
    theirs = trl_run(case, kind.partition(",")[0], folder)
    assert len(theirs.losses) == STEPS
    assert theirs.losses[-5:].mean() <= 0.95 * theirs.losses[:5].mean()
    loss, update = apart(case, our_run(case, kind), theirs)
    assert loss <= LOSS
    assert update <= UPDATE


def mean_of_means(case: Case) -> Run:
    """Each micro-batch a step of its own, whose gradients optax averages."""
    schedule = optax.linear_schedule(0.0, 5e-3, 2)
    fall = optax.linear_schedule(5e-3, 0.0, STEPS - 2)
    rate = optax.join_schedules([schedule, fall], [2])
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1))
    run = our_run(
        case,
        "accumulation",
        tx=optax.MultiSteps(tx, 4).gradient_transformation(),
        gradient_accumulation_steps=1,
        max_steps=4 * STEPS,
        max_grad_norm=0,
    )
    return Run(run.losses.reshape(STEPS, 4).mean(1), run.tensors)


def shifted_labels(case: Case) -> Run:
    rows = []
    for row in case.rows("text"):
        ids = [*case.tokenizer(row["text"])["input_ids"], case.tokenizer.eos_token_id]
        rows.append({"input_ids": ids, "labels": [*ids[1:], -100]})
    return our_run(case, "accumulation", rows=rows)


FAULTS = {
    "a mean of the micro-batches' means": mean_of_means,
    "labels one place off": shifted_labels,
    "no weight decay": lambda case: our_run(case, "accumulation", weight_decay=0.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_fault(gemma: Case, fault: str, folder: Path) -> None:
    theirs = trl_run(gemma, "accumulation", folder)
    loss, update = apart(gemma, FAULTS[fault](gemma), theirs)
    assert loss > LOSS
    assert update > UPDATE
