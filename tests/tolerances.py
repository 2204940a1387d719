"""The only tolerances: largest error over largest value, by dtype and quantity.

The comment of each entry is the largest error measured over the cases of the tests (CPU, matmul
precision "highest"); the entry leaves a factor of about three for other devices and libraries.
"""

import numpy as np

TOLERANCES = {
    ("float64", "attention_forward"): 2e-15,  # 3.5e-16
    ("float32", "attention_forward"): 5e-07,  # 1.6e-7
    ("bfloat16", "attention_forward"): 0.01,  # 2.8e-3
    ("float16", "attention_forward"): 0.001,  # 2.9e-4
    ("float64", "attention_gradient"): 3e-15,  # 9.3e-16
    ("float32", "attention_gradient"): 1.5e-06,  # 4.9e-7
    ("bfloat16", "attention_gradient"): 0.01,  # 3.2e-3
    ("float16", "attention_gradient"): 0.0015,  # 4.1e-4
    ("float64", "cross_entropy_forward"): 2e-15,  # 2.5e-16
    ("float32", "cross_entropy_forward"): 5e-07,  # 1.2e-7
    ("bfloat16", "cross_entropy_forward"): 5e-07,  # 1.7e-7 (of the rounded inputs: all float32)
    ("float16", "cross_entropy_forward"): 5e-07,  # 8.2e-8 (likewise)
    ("float64", "cross_entropy_gradient"): 2e-15,  # 3.8e-16
    ("float32", "cross_entropy_gradient"): 1.5e-06,  # 4.1e-7
    ("bfloat16", "cross_entropy_gradient"): 0.015,  # 4.3e-3
    ("float16", "cross_entropy_gradient"): 0.002,  # 5.4e-4
    ("float32", "cross_entropy_rows"): 5e-7,  # 1.2e-7 (of the largest)
    ("bfloat16", "cross_entropy_rows"): 5e-7,  # 1.1e-7 (of the rounded inputs: all float32)
    ("float64", "rms_norm_forward"): 1e-15,  # 2.6e-16
    ("float32", "rms_norm_forward"): 4e-07,  # 1.3e-7
    ("bfloat16", "rms_norm_forward"): 0.015,  # 5.2e-3
    ("float16", "rms_norm_forward"): 0.0015,  # 5.5e-4
    ("float64", "rms_norm_gradient"): 3e-15,  # 7.5e-16
    ("float32", "rms_norm_gradient"): 7e-07,  # 2.1e-7
    ("bfloat16", "rms_norm_gradient"): 0.015,  # 5.6e-3
    ("float16", "rms_norm_gradient"): 0.0015,  # 4.1e-4
    ("float64", "glu_forward"): 1e-15,  # 2.1e-16
    ("float32", "glu_forward"): 4e-07,  # 1.3e-7
    ("bfloat16", "glu_forward"): 0.008,  # 2.6e-3
    ("float16", "glu_forward"): 0.001,  # 3.1e-4
    ("float64", "glu_gradient"): 3e-15,  # 8.1e-16
    ("float32", "glu_gradient"): 5e-07,  # 1.6e-7
    ("bfloat16", "glu_gradient"): 0.01,  # 3.3e-3
    ("float16", "glu_gradient"): 0.0015,  # 4.1e-4
    ("float32", "nf4_matmul"): 4e-6,  # 1.5e-6 (against float64; the XLA backend's too)
    ("bfloat16", "nf4_matmul"): 0.01,  # 3.0e-3 (likewise)
    ("float16", "nf4_matmul"): 0.0015,  # 4.2e-4 (likewise)
    ("float32", "absmax_mean"): 4e-7,  # 1.3e-7 (and of the values that it is added to)
    ("float32", "schedule"): 3e-7,  # 7.8e-8
    ("float64", "optimizer_step"): 3e-15,  # 6.8e-16
    ("float32", "optimizer_step"): 1e-6,  # 2.9e-7 (against float64)
    ("float32", "window_loss"): 5e-7,  # 1.1e-7 (against float64)
    ("float32", "window_gradient"): 2e-6,  # 8.9e-7
    ("float32", "gradient_norm"): 5e-7,  # 0
    ("float32", "finite_difference"): 5e-4,  # 2.7e-5; 1.3e-4 with jax 0.11: float32 noise over 4e-3
    ("float32", "sgd_steps"): 3e-7,  # 6.4e-8
    ("float32", "adamw_steps"): 1e-4,  # 1.1e-5
    # Of the way that parameters went, as root mean squares; gradients of one size, lr 1e-2.
    ("float32", "adam_8bit_1_steps"): 1.2e-5,  # 3.4e-6
    ("float32", "adam_8bit_20_steps"): 2e-5,  # 7.0e-6
    ("float32", "adam_8bit_200_steps"): 8e-4,  # 2.6e-4 (codes by a middle)
    ("float32", "adam_8bit_absmax"): 2e-6,  # 6.2e-7
    ("float32", "adam_8bit_step"): 1e-4,  # 3.3e-5 (a step of 1e-2 beside parameters of 3.6)
    ("float32", "adam_8bit_1_steps_cpu"): 3e-4,  # 1.0e-4 (its decay comes first)
    ("float32", "adam_8bit_20_steps_cpu"): 6e-3,  # 2.1e-3
    ("float32", "adam_8bit_200_steps_cpu"): 0.027,  # 9.0e-3
    ("float32", "adamw_8bit"): 8e-3,  # 2.4e-3 (20 steps, likewise; against bitsandbytes' CPU code)
    ("float32", "lion_8bit"): 0.03,  # 8.8e-3 (likewise; 1.2e-9 where the state is 32-bit)
    ("float32", "stack_of_tensors"): 2e-6,  # 6.4e-7
    ("float32", "full_loss"): 6e-7,  # 1.8e-7 (float32 against float32 over five steps)
    ("float32", "full_loss_50_steps"): 1e-5,  # 7.3e-7; 2.8e-5 without weight decay
    ("float32", "full_parameters"): 5e-6,  # 1.4e-6
    # Runs in float16 against float32.
    ("float16", "run_loss"): 5e-3,  # 1.5e-3 (six steps)
    ("float16", "run_grad_norm"): 6e-2,  # 2.0e-2
    ("float16", "run_loss_100_steps"): 1.5e-3,  # 4.6e-4 (stories260K)
    # Runs over a mesh against one device: ten steps, the first one's gradient, the end.
    ("float32", "mesh_loss"): 1e-5,
    ("float32", "mesh_gradient"): 1e-5,
    ("float32", "mesh_sgd"): 1e-5,
    ("float32", "mesh_adamw_torch"): 2e-3,
    # The skeleton's contract, tiny random models against float64 torch.
    ("float32", "logits"): 2e-5,
    ("float32", "loss"): 1e-5,
    ("float32", "lora_gradient"): 1e-4,
    ("float32", "embedding_gradient"): 1e-4,
    ("float32", "lora_forward"): 6e-7,  # 2.1e-7 (against float64, as all four)
    ("bfloat16", "lora_forward"): 1.5e-2,  # 5.6e-3
    ("float32", "lora_slope"): 2.5e-6,  # 7.8e-7
    ("bfloat16", "lora_slope"): 1.5e-2,  # 5.4e-3
    ("float32", "frozen_product"): 1e-6,  # 2e-7 (against float64)
    # Ours against bitsandbytes' CPU code, which misses the nearest of 8-bit scales at times.
    ("float32", "double_quantized"): 1.2e-3,  # 4.1e-4
    ("bfloat16", "double_quantized"): 8e-3,  # 2.4e-3
    # A run over several devices or processes against one device: losses as above.
    ("float32", "spread_gradient"): 1e-5,  # (of the first step)
    ("float32", "spread_sgd"): 1e-5,  # (parameters after ten steps)
    ("float32", "spread_adamw_torch"): 2e-3,  # (likewise; Adam divides by noise-size moments)
    ("float32", "spread_predicted"): 2e-3,  # (logits, after those)
    # Seven steps of TRL's trainer; Adam divides by the root of noise-size second moments.
    ("float32", "trl_loss"): 1e-4,
    ("float32", "trl_grad_norm"): 1e-3,
    ("float32", "trl_learning_rate"): 1e-6,
    ("float32", "trl_epoch"): 1e-4,
    # Twenty steps of TRL's trainer at a rate of 5e-3: what a fault moves by 9e-4 and 0.03 or more.
    ("float32", "trl_20_losses"): 1e-4,  # 5.0e-6 (each loss over TRL's)
    ("float32", "plan_50_losses"): 6e-6,  # 1.7e-6 (each loss over that of recomputation)
    ("float32", "trl_20_update"): 1e-2,  # 8.5e-6 (of p20 - p0, in relative L2)
    ("float32", "embedding_rate_parameters"): 1.2e-4,  # 3.9e-5 (likewise; a LoRA B)
}

# By how much a measured number may be worse than the recorded one, of it: by its unit. Cards of one
# kind differ by some per cent, and disks and compilers by more.
RECORDED = {"ms": 0.06, "GiB": 0.03, "tokens/s": 0.08, "s": 0.25}


def tolerance(dtype, quantity):
    """Largest `relative_error` that `quantity` may have when computed in `dtype`, a name."""
    return TOLERANCES[dtype, quantity]


def relative_error(actual, expected, scale=None):
    """Largest absolute error over the largest absolute expected value, in float64.

    NaN and infinity never pass; where all that is expected is 0, the error is absolute. `scale`
    replaces the divisor, for a quantity that may be nothing but rounding beside its siblings.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    scale = float(np.abs(expected).max()) if scale is None else float(scale)
    return float(np.abs(actual - expected).max()) / (scale or 1.0)
