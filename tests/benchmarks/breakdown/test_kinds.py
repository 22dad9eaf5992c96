"""Kernels by name, and the floors that stand beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.breakdown import kinds as breakdown_kinds
from benchmarks.breakdown.kinds import (
    CONVOLUTION,
    COPY,
    FULL,
    GAPS,
    LINEAR,
    MEMSET,
    NORM,
    OTHER,
    POINTWISE,
    PRODUCT,
    WINDOW,
    Kernel,
    Profile,
    attentions,
    floors,
    kind_of,
    record,
    work,
)
from benchmarks.end_to_end.models import MODELS, PAPER_SIZE, pixels
from benchmarks.kernels.shapes import Ceilings
from tests.upstream import runs_dinov3_without_data

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
NAMES = {
    FULL: [
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 64, 4, false, cutlass::bfloat16_t>>",
        "void pytorch_flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<64, 64, 256, 4>>",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0",
        "cudnn_generated_fort_native_sdpa_sm90_knob_7_64x128x128_4x1x1_kernel0_0",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>::Params)",
        "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2>>>>",
        "rotate",
        "rotate_4",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    ],
    LINEAR: ["kv_partials", "kv_partials_0", "kv_state_1", "generate_taps_2", "mix_12", "jetvit::linear_attention"],
    WINDOW: ["attend_windows_0", "combine_extra_1", "jetvit::window_attention"],
    PRODUCT: [
        "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_bias_TNT",
        "nvjet_hsh_192x192_64x3_2x1_v_bz_coopB_NNT",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_cublas",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, false>",
        "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn",
        "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, float>",
        "triton_tem_fused_addmm_gelu_view_7",
        "triton_tem_fused__to_copy_mm_t_2",
        "triton_mm_3",
        "aten::addmm",
    ],
    CONVOLUTION: [
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_warpgroupsize1x1x1_cudnn",
        "sm80_xmma_dgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x32_stage5_cudnn",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_128x128_64x3_nhwc_align8>",
        "void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>",
        "void cudnn::ops::nhwcToNchwKernel<__nv_bfloat16, __nv_bfloat16, float, true, false>",
        "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, c10::BFloat16, int>",
        "triton_tem_fused_convolution_9",
        "aten::mkldnn_convolution",
    ],
    NORM: [
        "triton_per_fused__to_copy_add_mul_native_layer_norm_4",
        "triton_red_fused_native_layer_norm_1",
        "triton_poi_fused_add_native_layer_norm_2",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>",
        "aten::native_layer_norm",
    ],
    POINTWISE: [
        "triton_poi_fused_gelu_view_5",
        "triton_poi_fused_addmm_gelu_5",
        "triton_poi_fused_mul_silu_split_11",
        "triton_poi_fused_convolution_relu_7",  # what follows a convolution, not the convolution
        "triton_poi_fused_add_cat_mul_neg_3",
        "triton_red_fused_mean_2",
        "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&)>",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<c10::BFloat16, at::native::MeanOps<float>>>",
        "void at::native::(anonymous namespace)::upsample_bilinear2d_out_frame<c10::BFloat16, float>",
        "aten::gelu",
    ],
    COPY: [
        "Memcpy DtoD (Device -> Device)",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType<2u>, unsigned int, 3, 64>",
        "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>",
        "void at::native::unrolled_elementwise_kernel<at::native::bfloat16_copy_kernel_cuda(at::TensorIteratorBase&)>",
        "triton_poi_fused__to_copy_0",
        "triton_poi_fused_cat_clone_permute_3",
        "triton_poi_fused_constant_pad_nd_1",
        "triton_poi_fused__scaled_dot_product_cudnn_attention_clone_transpose_6",
        "aten::copy_",
    ],
    MEMSET: [
        "Memset (Device)",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<c10::BFloat16>>",
    ],
    OTHER: ["mixed_up", "some_new_kernel", "aten::view", "rotated_0"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_a_name_tells_its_kind(kind: str, name: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(("folder", "kind"), [("linear", LINEAR), ("window", WINDOW), ("full", FULL)])
def test_every_kernel_of_ours_is_known(folder: str, kind: str) -> None:
    """A kernel is a function of Triton that is launched."""
    text = (KERNELS / f"{folder}_attention" / "triton_kernels.py").read_text(encoding="utf-8")
    launched = (KERNELS / f"{folder}_attention" / "triton_launch.py").read_text(encoding="utf-8")
    names = re.findall(r"^@triton\.jit[^@]*?^def (\w+)\(", text, re.MULTILINE)
    names = [name for name in names if re.search(rf"\btriton_kernels\.{name}\b", launched)]
    assert names
    assert {kind_of(name) for name in names} == {kind}
    assert {kind_of(f"{name}_7") for name in names} == {kind}


# By hand, in µs a block at 3.0 TB/s and 600 TFLOP/s, full attention at 496 or 646: products, full, linear, window, and
# norms with activation.
@pytest.mark.parametrize(
    ("model", "products", "full", "linear", "window", "rest"),
    [
        ("DINOv3-B", 193, 417, 21, 17, 67),
        ("DINOv3-L", 344, 556, 28, 22, 90),
        ("DINOv3-7B", 4584, 1720, 112, 90, 313),
        ("DepthAnythingV2-L", 447, 940, 36, 29, 116),
        ("DepthAnythingV2-G", 1006, 1410, 55, 44, 175),
    ],
)
def test_floors_are_those_worked_by_hand(model, products, full, linear, window, rest) -> None:
    shape = MODELS[model]
    grid = shape.grid(pixels(model, PAPER_SIZE, dry=False))
    each = attentions(shape, grid, dict.fromkeys(("full", "linear", "window"), shape.depth))
    found = floors(work(shape, grid, each), Ceilings(3.0, 600), 646 if model == "DINOv3-7B" else 496)
    us = {kind: 1e3 * floor.ms / shape.depth for kind, floor in found.items()}
    assert us[PRODUCT] == pytest.approx(products, rel=0.02)
    assert us[FULL] == pytest.approx(full, rel=0.02)
    assert us[LINEAR] == pytest.approx(linear, rel=0.05)
    assert us[WINDOW] == pytest.approx(window, rel=0.05)
    assert us[NORM] + us[POINTWISE] == pytest.approx(rest, rel=0.02)


def test_a_floor_is_the_larger_number_of_each_operation() -> None:
    shape = MODELS["DINOv3-B"]
    found = floors(work(shape, (64, 128), attentions(shape, (64, 128), {"full": 2})), Ceilings(3.0, 600))
    assert set(found) == {PRODUCT, NORM, POINTWISE, FULL}  # nothing is said of a kind that was not counted
    assert found[NORM].by_flops_ms == 0
    assert all(floor.ms >= max(floor.by_flops_ms, floor.by_bytes_ms) - 1e-12 for floor in found.values())
    assert found[FULL].ms == found[FULL].by_flops_ms > found[FULL].by_bytes_ms


def test_a_record_adds_up() -> None:
    names = ["nvjet_tst_128x256", "mix_3", "nvjet_tst_128x256", "some_new_kernel"]
    kernels = tuple(Kernel(name, 20.0 * i, 10.0 + i) for i, name in enumerate(names))
    floor = floors({PRODUCT: [breakdown_kinds.Work(10**9, 10**6)]}, Ceilings(1.0, 100.0))
    found = record(Profile(0.1, 0.054, kernels), 0.09, floor, {"device": "none"}, {"model": "tiny"})
    assert found["environment"] == {"device": "none"}
    assert found["model"] == "tiny"
    assert (found["wall_ms"], found["event_ms"], found["launches"]) == (0.1, 0.09, 4)
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert sum(row["ms"] for row in kinds.values()) == pytest.approx(found["wall_ms"])
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)
    assert kinds[GAPS]["ms"] == found["gaps_ms"] == pytest.approx(0.054)
    assert kinds[PRODUCT] == {
        "kind": PRODUCT, "ms": 0.022, "launches": 2, "share": 0.22, "floor (computed), ms": 0.01
    }  # fmt: skip
    assert kinds[LINEAR]["floor (computed), ms"] is None
    assert [row["kind"] for row in found["kinds"]][:2] == [GAPS, PRODUCT]
    assert [row["name"] for row in found["kernels"]] == ["nvjet_tst_128x256", "some_new_kernel", "mix_3"]
    assert found["unknown"] == ["some_new_kernel"]


@runs_dinov3_without_data
def test_the_table_of_floors_names_every_part(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(breakdown_kinds, "MODELS", {"DINOv3-L": MODELS["DINOv3-L"]})
    breakdown_kinds.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 7
    assert "| DINOv3-L | matrix product | 24 | 8.25 | 2.35 |" in lines
    assert "| DINOv3-L | convolution |  | 0.02 |  |" in lines
    notes = (KERNELS.parent / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")
    assert "\n".join(lines[2:]) in notes
