"""Tests that the default selection leaves to the slow one, to stay within six minutes on two cores.

Each repeats for another family, dtype or size what a test that stays shows, or starts processes or
whole runs of its own. They carry the marker `slow`; CI runs them in a stage of their own.
"""

from fnmatch import fnmatch

REPEATS = (
    # Families: an untied Llama, Gemma 2 and 3, a windowed Mistral and Qwen3 stay, at one scale.
    "tests/jaxtune/models/test_parity.py::*[[]llama-tied*",
    "tests/jaxtune/models/test_parity.py::*[[]llama-biases*",
    "tests/jaxtune/models/test_parity.py::*[[]gemma2-even*",
    "tests/jaxtune/models/test_parity.py::*[[]mistral-no-window*",
    "tests/jaxtune/models/test_parity.py::*[[]gemma-one-kv-head*",
    "tests/jaxtune/models/test_parity.py::*[[]gemma3-multimodal*",
    "tests/jaxtune/models/test_parity.py::*-0.02[]]",
    "tests/jaxtune/models/test_sensitivity.py::test_a_perturbed_field_moves_the_logits*",
    "tests/jaxtune/models/test_row_kernels.py::test_kernels_give*",
    "tests/jaxtune/adapters/test_options.py::*[[]multimodal[]]",
    "tests/jaxtune/adapters/test_options.py::*[[]regex[]]",
    "tests/jaxtune/adapters/test_options.py::*[[]dora-bias-whole[]]",
    "tests/jaxtune/adapters/test_options.py::*[[]whole-norms[]]",
    "tests/jaxtune/adapters/test_dora.py::*[[]adamw_torch[]]",
    "tests/jaxtune/adapters/test_dora.py::*[[]lion_8bit[]]",
    "tests/jaxtune/adapters/test_dora.py::*[[]sgd[]]",
    "tests/jaxtune/adapters/test_tied.py::*",
    # Interpreted kernels in bfloat16: those of float32 stay.
    "tests/pallas_kernels/*bfloat16*interpret*",
    "tests/pallas_kernels/*interpret*bfloat16*",
    "tests/pallas_kernels/attention/test_block_ranges.py::test_with_any_segments*",
    "tests/pallas_kernels/attention/test_block_ranges.py::test_packed_rows_with_padding*",
    # Lowering of every real shape: one of each op, on every card, stays in test_devices.py.
    "tests/pallas_kernels/*/test_lowering.py::*",
    "tests/pallas_kernels/attention/test_values.py::test_many_blocks*",
    "tests/pallas_kernels/cross_entropy/test_transformations.py::*600_mb*",
    # Processes, real tokenizers, whole runs.
    "tests/convert/test_quantized_form.py::test_a_weight_is_computed_once*",
    "tests/notebooks/test_notebooks.py::*_runs_*[[]0[2-5]*",
    "tests/jaxtune/bench/test_run.py::*",
    "tests/jaxtune/cli/test_chat.py::test_draws*",
    "tests/jaxtune/data/test_chat_rows.py::*[[]gemma*",
    "tests/jaxtune/data/test_chat_rows.py::*[[]llama3*",
    "tests/jaxtune/data/test_chat_template_choice.py::*",
    "tests/jaxtune/generation/test_sampling.py::test_both_tokens*",
    "tests/jaxtune/optim/test_blockwise.py::*",
    "tests/jaxtune/optim/test_decay.py::test_groups_of_an_adapter_with_all*",
    "tests/jaxtune/quickstart/test_own_model.py::*",
    "tests/jaxtune/test_gguf_export.py::*[[]llama-biases*",
    "tests/jaxtune/test_gguf_export.py::*[[]mistral*",
    "tests/jaxtune/test_gguf_export.py::*[[]gemma-one*",
    "tests/jaxtune/test_gguf_export.py::*[[]gemma3*",
    "tests/jaxtune/test_gguf_export.py::*[[]qwen3*",
    "tests/jaxtune/test_merged_4bit.py::*",
    "tests/jaxtune/test_torch_export.py::test_what_else*",
    "tests/jaxtune/test_torch_export.py::test_4_bit*",
    "tests/jaxtune/test_torch_export.py::*[[]mistral*",
    "tests/jaxtune/test_torch_export.py::*[[]gemma*",
    "tests/jaxtune/test_torch_export.py::*[[]qwen3*",
    "tests/jaxtune/cli/test_train.py::test_a_run_is_that*",
    "tests/jaxtune/training/test_evaluation.py::test_logits_exist*",
    "tests/jaxtune/training/test_float16.py::test_losses_are_those*",
    "tests/notebooks/*",
    "tests/jaxtune/training/test_embedding_rate.py::*",
    "tests/jaxtune/training/test_full.py::test_five_steps*",
    "tests/jaxtune/training/test_killed.py::*",
    "tests/jaxtune/training/test_micro_batches.py::*",
    "tests/jaxtune/training/test_neftune.py::test_a_run_draws*",
    "tests/jaxtune/training/test_non_finite.py::test_packed*",
    "tests/jaxtune/training/test_offload_check.py::*",
    "tests/jaxtune/training/test_packing.py::*",
    "tests/jaxtune/training/test_responses.py::*",
    "tests/jaxtune/training/test_resume.py::*",
    "tests/jaxtune/training/test_saver.py::*",
    "tests/perf/*",
    "tests/test_readmes.py::test_code_runs[[]README.md[]]",
)

# Slow ones that only `pytest -m slow` runs, by hand and before a release: whole matrices of runs,
# of which CI keeps a part, so that all that it runs takes fifteen minutes.
THOROUGH = (
    "tests/jaxtune/distribution/test_step.py::test_ten_steps*[[]dense*",
    "tests/jaxtune/distribution/test_step.py::test_ten_steps*[[]bank*",
    "tests/jaxtune/distribution/test_step.py::test_ten_steps*[[]nf4-packed*",
    "tests/jaxtune/distribution/test_step.py::test_ten_steps*[[]full-padded*",
    "tests/jaxtune/distribution/test_whole_runs.py::*dense*",
    "tests/jaxtune/test_export_matrix.py::*[[]mistral*",
    "tests/jaxtune/test_export_matrix.py::*[[]gemma-*",
    "tests/jaxtune/test_export_matrix.py::*[[]gemma3*",
    "tests/jaxtune/test_export_matrix.py::*[[]qwen3*",
    "tests/jaxtune/training/test_control.py::test_a_callback_steers*",
    "tests/jaxtune/training/test_control.py::test_full_determinism*",
    "tests/jaxtune/training/test_embedding_rate.py::test_the_run_is_trls*",
    "tests/jaxtune/training/test_embedding_rate.py::test_both_trainers*",
    "tests/jaxtune/training/test_killed.py::*20*",
    "tests/jaxtune/training/test_processes.py::*[[]data-model[]]",
    "tests/jaxtune/training/test_processes.py::*[[]fsdp-four_bits[]]",
    "tests/jaxtune/training/test_processes.py::*killed*[[]0[]]",
    "tests/jaxtune/training/test_processes.py::*signal*[[]2-1[]]",
    "tests/jaxtune/training/test_resume.py::*[[]whole weights*",
    "tests/jaxtune/training/test_resume.py::*[[]full, 8-bit*",
    "tests/jaxtune/training/test_resume.py::*[[]lion*",
    "tests/jaxtune/training/test_resume.py::*[[]adafactor*",
    "tests/jaxtune/training/test_resume.py::*[[]paged*",
    "tests/jaxtune/training/test_resume.py::*[[]best model of whole*",
    "tests/jaxtune/training/test_resume.py::*[[]grouped*",
    "tests/jaxtune/training/test_resume.py::*[[]each epoch*",
    "tests/jaxtune/training/test_trl_matrix.py::*stories*",
)


def repeats(name: str) -> bool:
    """Whether a test, by its node id, is left to the slow selection."""
    return any(fnmatch(name, pattern) for pattern in REPEATS)


def thorough(name: str) -> bool:
    """Whether a test, by its node id, is left to the slow selection by hand."""
    return any(fnmatch(name, pattern) for pattern in THOROUGH)
