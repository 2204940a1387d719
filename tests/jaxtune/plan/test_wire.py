"""Bytes between devices, read from a program's text, against what the mesh must exchange."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtune.plan.wire import bytes_received
from tests.jaxtune.bench.tiny import TINY

ROOT = Path(__file__).parents[3]
GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7}}"
PROGRAM = f"""HloModule jit_step, num_partitions=8

%body.1 (p: (s32[], u8[8])) -> (s32[], u8[8]) {{
  %g = u8[8,128]{{1,0}} all-gather(%part), channel_id=1, {GROUPS}, dimensions={{0}}
  %s = (u8[2,128], u8[8,128]) all-gather-start(%part), channel_id=2, {GROUPS}, dimensions={{0}}
  %d = u8[8,128]{{1,0}} all-gather-done(%s)
}}

%rare.2 (p: f32[4]) -> f32[4] {{
  ROOT %moved = f32[4]{{0}} collective-permute(%p), source_target_pairs={{{{0,1}},{{1,0}}}}
}}

%never.3 (p: f32[4]) -> f32[4] {{
  ROOT %p = f32[4]{{0}} parameter(0)
}}

ENTRY %main.9 (p: u8[8]) -> f32[] {{
  %loop = (s32[], u8[8]) while(%t), condition=%c, body=%body.1, backend_config={{"known_trip_count":{{"n":"5"}}}}
  %choice = f32[4]{{0}} conditional(%i, %x, %x), branch_computations={{%rare.2, %never.3}}
  %sums = (f32[6]{{0}}, /*index=1*/bf16[2]{{0}}) all-reduce(%a, %b), replica_groups=[2,4]<=[8]
  %alone = f32[100]{{0}} all-reduce(%a), replica_groups={{{{0}},{{1}}}}, to_apply=%add
  %part = f32[10]{{0}} reduce-scatter(%a), {GROUPS}, dimensions={{0}}
}}
"""  # noqa: E501


def test_each_operation_counts_by_its_size_group_and_turns() -> None:
    assert bytes_received(PROGRAM) == {
        "all-gather": 5 * 2 * 1024 * 3 / 4,
        "collective-permute": 16,
        "all-reduce": 2 * 28 * 3 / 4,
        "reduce-scatter": 40 * 3,
    }


COMPILED = """
import dataclasses, json, sys
from jaxtune import runtime
runtime.use_cpu(devices=4)
from jaxtune.bench.subject import find_subject
from jaxtune.models.placement import mesh_of_sizes
from jaxtune.plan.cards import card_of
from jaxtune.plan.options import PlanRequest
from jaxtune.plan.run import abstract_model
from jaxtune.plan.simulation import simulate
from jaxtune.plan.spread import received, spread_over
from jaxtune.training.sizes import held_by, nbytes_here
from jaxtune.bench.setup import make_optimizer
from jaxtune.training.step import split

subject = find_subject(sys.argv[1])
card = dataclasses.replace(card_of("h100"), dtype="float32")  # a CPU sends 16 bits as 32
for mesh in ("data=4", "fsdp=4", "data=2,fsdp=2"):
    options = PlanRequest(model=sys.argv[1], mesh=mesh, length=64, accumulation=2)
    said = received(abstract_model(options, subject, card), 2)
    model = abstract_model(dataclasses.replace(options, mesh=None), subject, card)
    spread_over(model, mesh_of_sizes(options.sizes))
    found = simulate(model, options.optim, rows=2, length=64, accumulation=2)
    trees = split(model)[1:]
    print(json.dumps([mesh, dataclasses.asdict(said), found.received, found.held,
                      sum(map(nbytes_here, trees))]))
"""


@pytest.mark.slow
def test_the_prediction_is_what_the_compiler_sends(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-c", COMPILED, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["data=4", "fsdp=4", "data=2,fsdp=2"]
    for mesh, said, sent, held, weights in lines:
        # Beside them a few scalars are summed.
        assert sent["all-reduce"] == pytest.approx(said["gradients"], rel=1e-3), mesh
        assert sent.get("all-gather", 0) == pytest.approx(said["weights"], rel=0.02), mesh
        assert weights < held < 1.5 * weights + 2**20, mesh
    assert lines[1][4] < lines[0][4]
