"""Loading holds some pieces of tensors in host memory, not the checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from convert import LazyTensor, write_checkpoint
from tests.base_install import SIZES

ROOT = Path(__file__).parents[3]
WIDE = {**SIZES, "vocab_size": 16_000, "hidden_size": 512, "intermediate_size": 4096}
WIDE |= {"num_hidden_layers": 10, "head_dim": 8}

# Sampled from outside Python's reach of the allocator: what the process holds that no file backs.
PROGRAM = """
import sys, threading, time
from pathlib import Path
import jax
from jaxtune.models import read_ahead, upload
from jaxtune.language_model import with_verbs
from jaxtune.models.configuration import read_hf_config
from jaxtune.models.loading import load_model
from jaxtune.models.registry import find_family

def anonymous():
    (line,) = [x for x in open("/proc/self/status") if x.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

# An eighth of what they are, as the model is small.
read_ahead.AHEAD_BYTES //= 8
upload.PIECE_BYTES //= 8
folder = Path(sys.argv[1])
hf = read_hf_config(folder)
family = with_verbs(find_family(hf["model_type"]))
config = family.config_from_hf(hf)
jax.numpy.zeros(1).block_until_ready()
before, samples, over = anonymous(), [], threading.Event()
def watch():
    while not over.is_set():
        samples.append(anonymous())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
model = load_model(folder, family, config, dtype="float32", progress=False)
over.set()
thread.join()
pieces = read_ahead.AHEAD_BYTES + read_ahead.THREADS * upload.PIECE_BYTES
print(max(samples) - before, anonymous() - before, len(samples), pieces)
"""


def test_the_peak_is_the_model_a_tensor_and_the_pieces_ahead(tmp_path: Path) -> None:
    """On a CPU the model itself is in host memory: the peak beyond it is what loading costs."""
    width, inner, half = WIDE["hidden_size"], WIDE["intermediate_size"], 8
    shapes = {"model.embed_tokens.weight": (WIDE["vocab_size"], width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(WIDE["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{side}_proj.weight": (half, width) for side in "kv"}
        shapes |= {f"{at}self_attn.q_proj.weight": (16, width)}
        shapes |= {f"{at}self_attn.o_proj.weight": (width, 16)}
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    draw = np.random.default_rng(0)
    tensors = {
        name: LazyTensor(
            shape=shape,
            dtype=np.dtype(np.float32),
            read=lambda shape=shape: draw.random(shape, np.float32),
        )
        for name, shape in shapes.items()
    }
    write_checkpoint(tmp_path / "model", tensors, WIDE, max_shard_bytes=100_000_000)
    sizes = [tensor.nbytes for tensor in tensors.values()]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak, held, samples, pieces = map(int, done.stdout.split())
    assert samples > 20
    assert held > 0.95 * sum(sizes), json.dumps([held, sum(sizes)])
    # The largest tensor's pieces while they are put together, those ahead, and the buffers.
    limit = max(sizes) + pieces + 40e6
    assert peak - sum(sizes) < limit
    assert limit < 0.5 * sum(sizes)
