"""bitsandbytes' 8-bit AdamW kernel in float64: its roundings to codes, and no others."""

import numpy as np

from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLES

TABLES = {signed: np.asarray(table, np.float32) for signed, table in DYNAMIC_TABLES.items()}


def quantised(x, signed):
    """(codes, absmax) of a flat array: the nearest value, found by trying every middle."""
    table = TABLES[signed]
    middles = (table[1:] + table[:-1]) * np.float32(0.5)
    blocks = np.pad(x, (0, -x.size % 256)).reshape(-1, 256)
    absmax = np.abs(blocks).max(1)
    scaled = blocks / np.where(absmax == 0, 1, absmax)[:, None]
    codes = np.searchsorted(middles.astype(np.float64), scaled)
    if signed:  # a first moment keeps its sign
        codes = np.where((scaled < 0) & (codes == 127), 126, codes)
    return codes, absmax


def read(codes, absmax, size, signed):
    return (TABLES[signed].astype(np.float64)[codes] * absmax[:, None]).reshape(-1)[:size]


class Model:
    """One tensor's parameter and state, stepped as the kernel does."""

    def __init__(self, p, lr, b1, b2, eps, weight_decay):
        self.p, self.rate, self.eps, self.decay = p.astype(np.float64), lr, eps, weight_decay
        self.betas = [float(np.float32(b)) for b in (b1, b2)]
        self.rest = [float(1 - np.float32(b)) for b in (b1, b2)]
        self.state = [quantised(np.zeros(p.size), signed) for signed in (True, False)]
        self.step = 0

    def update(self, g):
        self.step += 1
        size, finite = self.p.size, np.isfinite(g)
        m, v = (read(*self.state[i], size, signed) for i, signed in ((0, True), (1, False)))
        m = np.where(finite, self.betas[0] * m + self.rest[0] * g, 0)
        v = np.where(finite, self.betas[1] * v + self.rest[1] * g * g, 0)
        c1, c2 = 1 - self.betas[0] ** self.step, np.sqrt(1 - self.betas[1] ** self.step)
        p = self.p - self.rate * c2 / c1 * m / (np.sqrt(v) + c2 * self.eps)
        self.p = np.where(finite, p * (1 - self.rate * self.decay), self.p)
        self.state = [quantised(m, True), quantised(v, False)]
