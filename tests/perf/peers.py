"""Other libraries' kernels, for `python -m pallas_kernels.benchmark --peers tests.perf.peers`.

Each runs on the very arrays that ours run on, where its package is installed. Let JAX leave them
memory: XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

import importlib

import torch

from pallas_kernels import dequantize_nf4


def tensor(array):
    """The array itself, not a copy."""
    return torch.from_dlpack(array)


def linear_cross_entropy_inputs(arrays, rest):
    x, head, labels = map(tensor, (*arrays, *rest))
    return x, head, labels.long()


def capped(case, z):
    return z if case.softcap is None else case.softcap * torch.tanh(z / case.softcap)


def torch_cross_entropy(case, arrays, rest):
    x, head, labels = linear_cross_entropy_inputs(arrays, rest)

    def run(x):
        z = capped(case, (x @ head.T).float())
        return torch.nn.functional.cross_entropy(z, labels, ignore_index=-100, reduction="sum")

    return (x,), run


def liger_cross_entropy(case, arrays, rest):
    liger = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    x, head, labels = linear_cross_entropy_inputs(arrays, rest)
    run = liger.LigerFusedLinearCrossEntropyLoss(
        ignore_index=-100, reduction="sum", softcap=case.softcap
    )
    return (x,), lambda x: run(head, x, labels)


def cut_cross_entropy(case, arrays, rest):
    cce = importlib.import_module("cut_cross_entropy")
    x, head, labels = linear_cross_entropy_inputs(arrays, rest)

    def run(x):
        return cce.linear_cross_entropy(x, head, labels, softcap=case.softcap, reduction="sum")

    return (x,), run


def unsloth_cross_entropy(case, arrays, rest):
    unsloth = importlib.import_module("unsloth.kernels.cross_entropy_loss")
    x, head, labels = linear_cross_entropy_inputs(arrays, rest)

    def run(x):
        return unsloth.fast_cross_entropy_loss(
            (x @ head.T)[None], labels[None], logit_softcapping=case.softcap or 0, n_items=1
        )

    return (x,), run


def torch_attention(case, arrays, rest):
    del rest
    if case.softcap or case.window or case.document or case.q_offset:
        raise NotImplementedError("no soft-cap, window, documents or offset")
    heads_first = tuple(tensor(array).transpose(1, 2) for array in arrays)

    def run(q, k, v):
        o = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=case.options.scale, enable_gqa=True
        )
        return o.transpose(1, 2)

    return heads_first, run


def flash_attention(case, arrays, rest):
    del rest
    flash = importlib.import_module("flash_attn")
    if case.document:
        raise NotImplementedError("documents need its other function")

    def run(q, k, v):
        return flash.flash_attn_func(
            q,
            k,
            v,
            softmax_scale=case.options.scale,
            causal=True,
            window_size=(-1 if case.window is None else case.window - 1, 0),
            softcap=case.softcap or 0.0,
        )

    return tuple(map(tensor, arrays)), run


def norm_inputs(arrays, rest):
    residual, weight = rest
    x = tensor(arrays[0])
    return x, None if residual is None else tensor(residual), tensor(weight)


def torch_rms_norm(case, arrays, rest):
    x, residual, weight = norm_inputs(arrays, rest)
    offset = 1.0 if case.unit_offset else 0.0

    def run(x):
        h = x if residual is None else x + residual
        wide = h.float()
        n = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + case.options.eps)
        y = (n * (offset + weight.float())).to(h.dtype) if offset else weight * n.to(h.dtype)
        return y if residual is None else (y, h)

    return (x,), run


def liger_rms_norm(case, arrays, rest):
    x, residual, weight = norm_inputs(arrays, rest)
    if residual is None:
        ops = importlib.import_module("liger_kernel.ops.rms_norm")
        function = ops.LigerRMSNormFunction
    else:
        ops = importlib.import_module("liger_kernel.ops.fused_add_rms_norm")
        function = ops.LigerFusedAddRMSNormFunction
    added = () if residual is None else (residual,)
    offset, mode = (1.0, "gemma") if case.unit_offset else (0.0, "llama")
    return (x,), lambda x: function.apply(x, *added, weight, case.options.eps, offset, mode, False)


def torch_glu(case, arrays, rest):
    del rest
    act = torch.nn.functional.silu
    if case.activation != "silu":
        act = torch.nn.GELU(approximate="tanh")
    return tuple(map(tensor, arrays)), lambda gate, up: act(gate) * up


def liger_glu(case, arrays, rest):
    del rest
    if case.activation == "silu":
        function = importlib.import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction
    else:
        function = importlib.import_module("liger_kernel.ops.geglu").LigerGELUMulFunction
    return tuple(map(tensor, arrays)), function.apply


def quantized(case, rest):
    """bitsandbytes' own 4-bit form of the layer."""
    bnb = importlib.import_module("bitsandbytes")
    weight = tensor(dequantize_nf4(*rest, "bfloat16", backend="xla"))
    return bnb.functional.quantize_4bit(
        weight, blocksize=case.block, compress_statistics=case.nested, quant_type="nf4"
    )


def bitsandbytes_dequantize(case, arrays, rest):
    del arrays
    bnb = importlib.import_module("bitsandbytes")
    codes, state = quantized(case, rest)
    return (), lambda: bnb.functional.dequantize_4bit(codes, state)


def unsloth_dequantize(case, arrays, rest):
    del arrays
    if not case.nested:
        raise NotImplementedError("it reads nested absmax only")
    unsloth = importlib.import_module("unsloth.kernels.utils")
    codes, state = quantized(case, rest)
    return (), lambda: unsloth.fast_dequantize(codes, state)


PEERS = {
    "cross_entropy": {
        "torch": torch_cross_entropy,
        "liger": liger_cross_entropy,
        "cut_cross_entropy": cut_cross_entropy,
        "unsloth": unsloth_cross_entropy,
    },
    "attention": {"torch": torch_attention, "flash_attn": flash_attention},
    "rms_norm": {"torch": torch_rms_norm, "liger": liger_rms_norm},
    "glu": {"torch": torch_glu, "liger": liger_glu},
    "nf4": {"bitsandbytes": bitsandbytes_dequantize, "unsloth": unsloth_dequantize},
}


def programs(op, case, direction, sets):
    """By library, a function that starts the n-th call, or why there is none."""
    found = {}
    for name, peer in PEERS.get(op, {}).items():
        try:
            prepared = [peer(case, *inputs) for inputs in sets]
        except (ImportError, NotImplementedError) as error:
            found[name] = str(error)
        else:
            run = forward if direction == "forward" else forward_and_backward
            found[name] = lambda n, prepared=prepared, run=run: run(*prepared[n % len(prepared)])
    return found


def forward(inputs, function):
    with torch.no_grad():
        return function(*inputs)


def forward_and_backward(inputs, function):
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    y = function(*leaves)
    outputs = y if isinstance(y, tuple) else (y,)
    return y, torch.autograd.grad(outputs, leaves, [torch.ones_like(one) for one in outputs])


def wait(result):
    del result
    if torch.cuda.is_available():
        torch.cuda.synchronize()
