"""Kernels out of a made-up trace."""

import pytest

from jaxtune.bench import trace
from jaxtune.bench.floors import Floor
from jaxtune.bench.record import profiled
from jaxtune.bench.trace import by_group, classify, kernels, scopes_of

HLO = r"""
HloModule jit_step
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0), metadata={op_name="x['a']"}
  ROOT %add.1 = f32[2]{0} add(%p, %p), metadata={op_name="jit(step)/optimizer/add" source_line=3}
}
ENTRY %main {
  %custom-call.12 = (f32[2], s8[8]) call(), metadata={op_name="jit(step)/transpose(jvp(lora))/dot"}
  fusion.3 = f32[2] fusion(%p), metadata={op_type="add" op_name="jit(step)/say \"a\"/add"}
  %bare.1 = f32[2]{0} add(%p, %p)
}
"""


def name(kind, pid, text, tid=None):
    event = {"ph": "M", "name": kind, "pid": pid, "args": {"name": text}}
    return event if tid is None else {**event, "tid": tid}


def spent(kernel, us, tid=10, pid=1, **args):
    event = {"ph": "X", "pid": pid, "tid": tid, "ts": 0, "dur": us, "name": kernel}
    return {**event, "args": args} if args else event


TRACE = [
    name("process_name", 1, "/device:GPU:0 (NVIDIA H200)"),
    name("process_name", 2, "/host:CPU"),
    name("thread_name", 1, "Stream #13(Compute,MemcpyD2D)", 10),
    name("thread_name", 1, "Stream #14(MemcpyH2D)", 11),
    name("thread_name", 1, "XLA Ops", 12),
    name("thread_name", 2, "Stream of the host", 10),
    {"ph": "M", "name": "process_sort_index", "pid": 1},
    spent("nvjet_tst_128x256", 3000, hlo_op="custom-call.9"),
    spent("nvjet_tst_128x256", 1500, hlo_op="custom-call.9"),
    spent("nvjet_tst_128x256", 600, hlo_op="custom-call.12"),
    spent("MemcpyH2D", 90, tid=11),
    spent("custom-call.9", 4500, tid=12),
    spent("nvjet_tst_128x256", 7, pid=2),
    {"ph": "X", "pid": 1, "tid": 10, "name": "no_time_at_all"},
    {"ph": "C", "pid": 1, "tid": 10, "name": "counter"},
    {},
]


def test_scopes_of_a_programs_text():
    assert scopes_of(HLO) == {
        "p": "x['a']",
        "add.1": "jit(step)/optimizer/add",
        "custom-call.12": "jit(step)/transpose(jvp(lora))/dot",
        "fusion.3": r"jit(step)/say \"a\"/add",
        "add_1": "jit(step)/optimizer/add",
        "custom_call_12": "jit(step)/transpose(jvp(lora))/dot",
        "fusion_3": r"jit(step)/say \"a\"/add",
    }


def test_a_kernel_in_a_command_buffer_is_found_by_its_own_name():
    scopes = scopes_of(HLO)
    assert classify("custom_call_12", {"hlo_op": "command_buffer_1"}, scopes) == trace.LORA
    assert classify("custom_call_13", {"hlo_op": "command_buffer_1"}, scopes) == trace.OTHER


def test_kernels_are_added_up_over_the_streams_of_gpus_and_nothing_else():
    found = kernels(TRACE, scopes_of(HLO), 3)
    assert [(k.name, k.group, k.ms, k.launches) for k in found] == [
        ("nvjet_tst_128x256", "GEMM", pytest.approx(1.5), pytest.approx(2 / 3)),
        ("nvjet_tst_128x256", "LoRA", pytest.approx(0.2), pytest.approx(1 / 3)),
        ("MemcpyH2D", "copies", pytest.approx(0.03), pytest.approx(1 / 3)),
        ("no_time_at_all", "other", 0.0, pytest.approx(1 / 3)),
    ]


def test_a_trace_without_process_names_will_do():
    events = [e for e in TRACE if e.get("name") != "process_name" and e.get("pid") == 1]
    assert len(kernels(events, {}, 3)) == 3


@pytest.mark.parametrize(
    ("kernel", "args", "group"),
    [
        ("sm90_xmma_gemm_bf16bf16", {}, "GEMM"),
        ("void cutlass::Kernel2<...>", {}, "GEMM"),
        ("gemm_fusion_dot_general_3", {}, "GEMM"),
        ("gemm_fusion_dot_general_3", {"tf_op": "jit(step)/lora/dot_general"}, "LoRA"),
        ("nvjet_hsh", {"name": "jit(step)/jvp(lora)/dot_general"}, "LoRA"),
        ("nvjet_hsh", {"name": "jit(step)/floral/dot_general"}, "GEMM"),
        ("nvjet_hsh", {"name": "jit(step)/nf4_matmul/dot_general"}, "GEMM"),
        ("loop_convert_fusion", {"name": "jit(step)/lora/convert_element_type"}, "LoRA"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", {}, "attention"),
        ("flash_attention_backward", {}, "attention"),
        ("loop_fusion", {"tf_op": "jit(step)/dot_product_attention_fwd"}, "attention"),
        ("nf4_dequantise_kernel", {}, "dequantisation"),
        ("triton_kernel", {"hlo_op": "dequantise.4"}, "dequantisation"),
        ("loop_fusion", {"scope": "jit(step)/nf4/gather"}, "dequantisation"),
        ("MemcpyD2D", {}, "copies"),
        ("loop_dynamic_update_slice_fusion_2", {}, "copies"),
        ("wrapped_slice", {"hlo_op": "dynamic-update-slice.7"}, "copies"),
        ("loop_dynamic_slice_fusion", {}, "copies"),
        ("input_copy_fusion", {}, "copies"),
        ("loop_multiply_fusion", {"tf_op": "jit(step)/optimizer/mul"}, "optimizer"),
        ("loop_multiply_fusion", {"tf_op": None}, "norm, GLU, elementwise"),
        ("triton_softmax_5", {}, "norm, GLU, elementwise"),
        ("rms_norm_forward", {}, "norm, GLU, elementwise"),
        ("whatever", {}, "other"),
    ],
)
def test_groups(kernel, args, group):
    assert classify(kernel, args, {}) == group


def test_every_group_is_listed_in_order_with_the_floors_that_are_known():
    found = kernels(TRACE, scopes_of(HLO), 3)
    assert list(by_group(found)) == list(trace.GROUPS)
    record = profiled(found, Floor(linears=1.0, head=0.25, attention=2.0, dequantisation=3.0))
    floors = {group: row["floor_ms"] for group, row in record["groups"].items()}
    assert floors == {
        **dict.fromkeys(trace.GROUPS),
        "GEMM": 1.25,
        "attention": 2.0,
        "dequantisation": 3.0,
    }
    assert record["total_ms"] == pytest.approx(1.73)
    assert record["groups"]["LoRA"]["ms"] == pytest.approx(0.2)
    assert sum(kernel["share"] for kernel in record["kernels"]) == pytest.approx(1)


def test_a_trace_without_kernels_gives_none():
    assert kernels([], {}, 3) == []
    floor = Floor(linears=1.0, head=1.0, attention=1.0, dequantisation=1.0)
    assert profiled([], floor)["total_ms"] == 0
