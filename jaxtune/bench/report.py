"""The record in words: aligned text for a person."""

from typing import Any

Json = dict[str, Any]

GIB = 2**30
MIB = 2**20
TOP = 25
NAME_WIDTH = 68


def lines(record: Json) -> list[str]:
    """What is printed of a record.

    Args:
      record: Of `jaxtune.bench.record`, with "profile" where there was one.

    Returns:
      Lines without their ends.
    """
    options = record["options"]
    packing = ", packed" if options["packing"] else ""
    step = (
        f"{options['accumulation']} x {options['batch']} rows of {options['length']} tokens"
        f"{packing}; {options['bits']} bits, LoRA rank {options['rank']}, "
        f"{options['optimizer']}, plan {options['plan']}, kernels {options['kernels']}"
    )
    about = [*_about(record), ("step", step), ("", "")]
    said = _columns([*about, *_step(record), *_memory(record), *_compilation(record)])
    if "profile" in record:
        said += ["", *_profile(record["profile"])]
    return said


def answer_lines(record: Json) -> list[str]:
    """What is printed of a record of answers.

    Args:
      record: Of `jaxtune.bench.record.answered`, with what `about` says.

    Returns:
      Lines without their ends.
    """
    options, memory, rates = record["options"], record["memory_bytes"], record["rates"]
    answers = (
        f"prompts of {options['prompt']} tokens, {options['new_tokens']} new ones, greedy; "
        f"{options['bits']} bits, LoRA rank {options['rank']}, kernels {options['kernels']}"
    )
    held = f"frozen weights {_bytes(memory['frozen'])}, adapter {_bytes(memory['adapter'])}"
    return [
        *_columns([*_about(record), ("answers", answers), ("", "")]),
        f"{'rows':<6}{'for_inference':<15}{'first token':>13}{'answer':>12}{'tokens/s':>10}"
        f"{'decoding':>10}{'floor':>9}{'first call':>12}{'compiled':>10}",
        *(_answer(row) for row in record["answers"]),
        "",
        f"tokens/s of all rows: of the whole answer, after the first token, and at "
        f"{rates['copy_bytes_per_second'] / 1e12:.3g} TB/s if each weight were read once.",
        f"First token, floor: {_floors(record['answers'])}.",
        f"held {held}; peak, by the allocator {_bytes(memory['allocator'])}.",
    ]


def _answer(row: Json) -> str:
    decoded, compiled = row["decoded_tokens_per_second"], row["compiled_during"]
    return (
        f"{row['rows']:<6}{'yes' if row['for_inference'] else 'no':<15}"
        f"{row['first_token']['median_ms']:>10.1f} ms{row['answer']['median_ms']:>9.1f} ms"
        f"{row['tokens_per_second']:>10,.0f}{'-' if decoded is None else f'{decoded:,.0f}':>10}"
        f"{row['floor']['tokens_per_second']:>9,.0f}{row['first_call_seconds']:>10.1f} s"
        f"{'not told' if compiled is None else compiled:>10}"
    )


def _floors(answers: list[Json]) -> str:
    each = {row["rows"]: row["floor"]["first_token_ms"] for row in answers}
    return ", ".join(f"{floor:.1f} ms of {rows}" for rows, floor in each.items())


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    """Labels in one column, texts in the next."""
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {text}".rstrip() for label, text in rows]


def _about(record: Json) -> list[tuple[str, str]]:
    options, model, versions = record["options"], record["model"], record["versions"]
    driver = f", driver {record['driver']}" if record["driver"] else ""
    return [
        ("device", f"{record['device']['kind']}{driver}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v)),
        (
            "model",
            f"{options['model']}: {model['num_hidden_layers']} layers of {model['hidden_size']} x "
            f"{model['intermediate_size']}, vocabulary {model['vocab_size']}, "
            f"{model['linear_parameters'] / 1e9:.3f} G weights in projections",
        ),
    ]


def _step(record: Json) -> list[tuple[str, str]]:
    step, rates, floor = record["step"], record["rates"], record["floor"]
    reached = record["utilisation"]
    datasheet = "no datasheet peak known"
    if reached["of_datasheet"] is not None:
        peak = rates["datasheet_flops_per_second"]
        datasheet = f"{_percent(reached['of_datasheet'])} of the datasheet's {_tera(peak)} TFLOP/s"
    return [
        (
            "time",
            f"{step['median_ms']:.1f} ms median of {len(step['each_ms'])} "
            f"(p20 {step['p20_ms']:.1f}, p80 {step['p80_ms']:.1f})",
        ),
        ("throughput", f"{step['tokens_per_second']:,.0f} tokens/s"),
        (
            "utilisation",
            f"{_percent(reached['of_measured_matmul'])} of the measured "
            f"{_tera(rates['matmul_flops_per_second'])} TFLOP/s of a product; {datasheet}",
        ),
        ("copy", f"{rates['copy_bytes_per_second'] / 1e12:.3g} TB/s measured, read and written"),
        (
            "floor",
            f"{floor['total_ms']:.1f} ms, {floor['percent_of_step']:.1f} % of the step (linears "
            f"{floor['linears_ms']:.1f}, head {floor['head_ms']:.1f}, attention "
            f"{floor['attention_ms']:.1f}, dequantisation {floor['dequantisation_ms']:.1f})",
        ),
        ("", ""),
    ]


def _memory(record: Json) -> list[tuple[str, str]]:
    memory = record["memory_bytes"]
    plan, text = memory["compiler"], "not told"
    if plan is not None:
        text = (
            f"{_bytes(plan['peak'])} (arguments {_bytes(plan['arguments'])}, temporaries "
            f"{_bytes(plan['temporaries'])}, outputs {_bytes(plan['outputs'])}, aliased "
            f"{_bytes(plan['aliased'])})"
        )
        if plan["host_temporaries"]:
            text += f"; in host memory {_bytes(plan['host_temporaries'])}"
    on_host = ""
    if memory["frozen_on_host"]:
        on_host = f" ({_bytes(memory['frozen_on_host'])} more in host memory)"
    return [
        (
            "held",
            f"frozen weights {_bytes(memory['frozen'])}{on_host}, adapter "
            f"{_bytes(memory['adapter'])}, optimizer {_bytes(memory['optimizer'])}",
        ),
        ("peak, by the compiler", text),
        ("peak, by the allocator", _allocator(memory)),
        ("in use, by nvidia-smi", _bytes(memory["nvidia_smi"])),
        ("", ""),
    ]


def _allocator(memory: Json) -> str:
    """The allocator's peak; it never forgets, so an earlier one may hide the steps'."""
    peak, before = memory["allocator"], memory["allocator_before"]
    if peak is None or before is None or peak > before:
        return _bytes(peak)
    return (
        f"at most {_bytes(peak)}, reached while the weights were drawn; "
        f"{_bytes(memory['in_use'])} in use between steps"
    )


def _compilation(record: Json) -> list[tuple[str, str]]:
    seen, donation = record["compilation"], record["donation"]
    cached = " (from the compile cache)" if seen["from_cache"] else ""
    start, during = seen["start_to_first_step_seconds"], seen["during_timed_steps"]
    return [
        (
            "compilation",
            f"{seen['compile_seconds']:.1f} s{cached}, after {seen['trace_seconds']:.1f} s of "
            "tracing",
        ),
        ("start to end of step 1", "not told" if start is None else f"{start:.1f} s"),
        ("compiled while timing", "not told" if during is None else f"{during} programs"),
        (
            "donation",
            f"{donation['taken_over']} of {donation['of']} arrays of adapter and optimizer",
        ),
    ]


def _profile(profile: Json) -> list[str]:
    if not profile["kernels"]:
        return ["profile: the trace holds no GPU kernels."]
    said = [
        f"profile: {profile['total_ms']:.1f} ms of kernels a step",
        "",
        f"{'group':<24}{'ms':>9}{'share':>8}{'launches':>10}{'floor ms':>10}",
    ]
    for group, row in profile["groups"].items():
        floor = "-" if row["floor_ms"] is None else f"{row['floor_ms']:.2f}"
        share = _percent(row["ms"] / profile["total_ms"])
        said.append(f"{group:<24}{row['ms']:>9.2f}{share:>8}{row['launches']:>10.0f}{floor:>10}")
    said += ["", f"{'ms':>9}{'share':>8}{'launches':>10}  {'group':<24}kernel"]
    for kernel in profile["kernels"][:TOP]:
        said.append(
            f"{kernel['ms']:>9.2f}{_percent(kernel['share']):>8}{kernel['launches']:>10.0f}  "
            f"{kernel['group']:<24}{kernel['name'][:NAME_WIDTH]}"
        )
    return said


def _bytes(count: int | None) -> str:
    if count is None:
        return "not told"
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.2f} MiB"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
