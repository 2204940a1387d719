"""Attention by torch in float64, with its gradients by torch's autograd."""

import numpy as np
import torch


def _mask(case, inputs):
    t = torch.arange(case.T)[:, None] + case.q_offset
    s = torch.arange(case.S)[None, :]
    mask = s <= t
    if case.window is not None:
        mask = mask & (s > t - case.window)
    mask = mask.expand(case.B, 1, case.T, case.S)
    if inputs.q_segment_ids is not None:
        ids_q = torch.tensor(np.asarray(inputs.q_segment_ids))
        ids_k = torch.tensor(np.asarray(inputs.kv_segment_ids))
        mask = mask & (ids_q[:, None, :, None] == ids_k[:, None, None, :])
    return mask


def torch_attention(case, inputs, dy):
    """Give y, dq, dk, dv as float64 numpy arrays in our layouts."""
    leaves = [
        torch.tensor(np.asarray(x, np.float64), requires_grad=True)
        for x in (inputs.q, inputs.k, inputs.v)
    ]
    q, k, v = (x.transpose(1, 2) for x in leaves)
    mask = _mask(case, inputs)
    seen = mask.any(-1, keepdim=True)
    mask = mask | ~seen  # torch gives NaN where nothing is seen
    scale = case.options.scale
    if case.softcap is None:
        y = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=True
        )
    else:
        group = case.N // case.K
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = case.softcap * torch.tanh(q @ k.mT * scale / case.softcap)
        y = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    y = (y * seen).transpose(1, 2)
    y.backward(torch.tensor(np.asarray(dy, np.float64)))
    return y.detach().numpy(), *(x.grad.numpy() for x in leaves)
