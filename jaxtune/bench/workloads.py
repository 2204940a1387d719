"""What is measured again and again, each by one command; imports no jax."""

import dataclasses

from jaxtune.bench.options import Bench

TIME, PEAK = "step", "peak"
FIRST, RATE = "first token", "tokens/s"
COLD, WARM, NOTEBOOK_STEP = "cold start", "warm start", "notebook step"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number of a record.

    Attributes:
      name: Its column of the results.
      path: Keys and places that lead to it in the record.
      unit: Of the results.
      scale: From the record's unit to that.
    """

    name: str
    path: tuple[str | int, ...]
    unit: str
    scale: float = 1.0

    def of(self, record: object) -> float:
        """The number, in `unit`; KeyError if the record has none."""
        for key in self.path:
            record = record[key]  # pyrefly: ignore[bad-index]  JSON: the path says what it is.
        if not isinstance(record, int | float):
            raise KeyError(f"{self.path} leads to {record!r}, which is no number")
        return record * self.scale


STEP = (
    Quantity(name=TIME, path=("step", "median_ms"), unit="ms"),
    Quantity(name=PEAK, path=("memory_bytes", "compiler", "peak"), unit="GiB", scale=2.0**-30),
)
NOTEBOOK = (
    Quantity(name=COLD, path=("starts", "cold", "total_seconds"), unit="s"),
    Quantity(name=WARM, path=("starts", "warm", "total_seconds"), unit="s"),
    Quantity(name=NOTEBOOK_STEP, path=("starts", "warm", "step_ms"), unit="ms"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Something to measure.

    Attributes:
      name: Of its rows in the results.
      label: For a person.
      options: Of `jaxtune bench`.
      quantities: What is kept of its record.
      peers: Name that other systems' rows have; "": the same.
    """

    name: str
    label: str
    options: Bench
    quantities: tuple[Quantity, ...] = STEP
    peers: str = ""

    @property
    def arguments(self) -> list[str]:
        """What follows `jaxtune bench`, but for folders and files of one's own."""
        words = []
        for field in dataclasses.fields(self.options):
            value = getattr(self.options, field.name)
            flag = f"--{field.name.replace('_', '-')}"
            if value is True:
                words.append(flag)
            elif field.name == "model" or value != field.default:
                several = value if isinstance(value, tuple) else (value,)
                words += [flag, *map(str, several)]
        return words

    @property
    def command(self) -> str:
        """As it is typed; folders and files of one's own stand in capitals."""
        own = ["--weights DIR --tokenizer DIR --dataset FILE"] if self.options.notebook else []
        return " ".join(["jaxtune bench", *self.arguments, *own])


def _step(name: str, label: str, options: Bench, peers: str = "") -> Workload:
    return Workload(name=name, label=label, options=options, peers=peers)


def _answers(rows: int) -> Workload:
    return Workload(
        name=f"8b_generate_{rows}",
        label=f"Llama-3-8B answers, {rows} at a time: 128 tokens to each prompt of 128",
        options=Bench(generate=True, rows=(rows,)),
        quantities=(
            Quantity(name=RATE, path=("answers", 1, "tokens_per_second"), unit="tokens/s"),
            Quantity(name=FIRST, path=("answers", 1, "first_token", "median_ms"), unit="ms"),
        ),
    )


WORKLOADS = (
    _step("8b_none", "Llama-3-8B, 4 bits, 2 x 2,048, everything kept", Bench(plan="none")),
    _step(
        "8b_none_8bit",
        "Llama-3-8B, 4 bits, 2 x 2,048, everything kept, 8-bit AdamW",
        Bench(plan="none", optimizer="adamw_8bit"),
    ),
    _step("8b_full", "Llama-3-8B, 4 bits, 2 x 2,048, layers computed again", Bench(plan="full")),
    _step(
        "8b_offload", "Llama-3-8B, 4 bits, 2 x 2,048, again from host memory", Bench(plan="offload")
    ),
    _step(
        "8b_least",
        "Llama-3-8B, 4 bits, 2 x 2,048, the smallest plan",
        Bench(plan="least", optimizer="adamw_8bit"),
    ),
    _step(
        "8b_16bit", "Llama-3-8B, 16 bits, 2 x 2,048, everything kept", Bench(plan="none", bits=16)
    ),
    _step(
        "8b_16k",
        "Llama-3.1-8B, 4 bits, 1 x 16,384",
        Bench(model="llama-3.1-8b", plan="offload", batch=1, length=16384, optimizer="adamw_8bit"),
    ),
    _step(
        "8b_64k",
        "Llama-3.1-8B, 4 bits, 1 x 65,536",
        Bench(model="llama-3.1-8b", plan="least", batch=1, length=65536, optimizer="adamw_8bit"),
    ),
    _step(
        "1b_none",
        "Llama-3.2-1B, 4 bits, 2 x 2,048, everything kept",
        Bench(model="llama-3.2-1b", plan="none"),
        peers="1b",
    ),
    _step(
        "1b_least",
        "Llama-3.2-1B, 4 bits, 2 x 2,048, the smallest plan",
        Bench(model="llama-3.2-1b", plan="least", optimizer="adamw_8bit"),
        peers="1b",
    ),
    _step(
        "7b_none",
        "Mistral-7B v0.3, 4 bits, 2 x 2,048, everything kept",
        Bench(model="mistral-7b-v0.3", plan="none"),
    ),
    _step(
        "7b_least",
        "Mistral-7B v0.3, 4 bits, 2 x 2,048, the smallest plan",
        Bench(model="mistral-7b-v0.3", plan="least"),
    ),
    _step(
        "9b_none",
        "Gemma-2-9B, 4 bits, 2 x 2,048, everything kept",
        Bench(model="gemma-2-9b", plan="none"),
    ),
    _step(
        "9b_least",
        "Gemma-2-9B, 4 bits, 2 x 2,048, the smallest plan",
        Bench(model="gemma-2-9b", plan="least"),
    ),
    _answers(1),
    _answers(8),
    Workload(
        name="8b_notebook",
        label="process start to saved adapter: 60 steps of 2 x 4 Alpaca rows, 8B",
        options=Bench(notebook=True),
        quantities=NOTEBOOK,
    ),
)
