"""Kernel names as profilers gave them on GPUs, each with the kind that it has to be counted as."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slidesparse.bench.kernel_kinds import Kernel, kind_of, shares

FLASH = (
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::"
    "CollectiveMainloopFwdSm90<2, cute::tuple<cute::C<1>, cute::C<1>, cute::C<1> >, cute::tuple<"
    "cute::C<128>, cute::C<128>, cute::C<128> >, 128, cutlass::bfloat16_t, float, "
    "cutlass::arch::Sm90, true, false, false, true, true, false"
)
ACT_AND_MUL = (
    "void vllm::act_and_mul_kernel<c10::BFloat16, &(c10::BFloat16 vllm::silu_kernel<c10::BFloat16>("
    "c10::BFloat16 const&)), true>(c10::BFloat16*, c10::BFloat16 const*, int)"
)
CUTLASS_FP8 = (
    "void cutlass::device_kernel<vllm::cutlass_3x_gemm_sm90_fp8<cutlass::float_e4m3_t, "
    "cutlass::bfloat16_t, vllm::c3x::ScaledEpilogue, cute::tuple<cute::C<64>, cute::C<128>, "
    "cute::C<128> >, cute::tuple<cute::C<2>, cute::C<1>, cute::C<1> >, "
)

KERNELS = {
    Kernel.GEMM: (
        CUTLASS_FP8,
        "nvjet_qqtst_128x256_128x6_2x1_v_bz_coopA_NNT",
        "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN",
        "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128_cgasize1x2x1_stage4_"
        "gmmastage2_warpgroupsize1x1x1_tensor64x128x32_execute_kernel__5x_cublas",
        "sm90_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage4_gmmastage2_"
        "warpgroupsize1x1x1_igmma64x128x32",
        "sm90_xmma_sparse_gemm_f16f16_f16f32_f32_nt_t_tilesize128x128x64_cgasize2x1x1_stage4_"
        "gmmastage2_warpgroupsize1x1x1_sptensor_hgmma64x128x32",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>(...)",
        "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float>(...)",
        "std::enable_if<true, void>::type internal::gemvx::kernel<int, int, __nv_bfloat16>(...)",
        "sparse_gemm",
        "triton_tem_fused_mm_3",
        "fused_moe_kernel",
    ),
    Kernel.FUSED: (
        "triton_red_fused_add_cutlass_scaled_mm_mul_rms_norm_2",
        "triton_poi_fused_mul_silu_slice_1",
        "triton_per_fused__to_copy_abs_amax_3",
        "void vllm::rms_norm_kernel<c10::BFloat16, 8, 2>(c10::BFloat16*, c10::BFloat16 const*)",
        "std::enable_if<true, void>::type vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>(...)",
        ACT_AND_MUL,
        "void vllm::dynamic_per_token_scaled_fp8_quant_kernel_strided<c10::BFloat16, "
        "c10::Float8_e4m3fn>(c10::Float8_e4m3fn*, float*, c10::BFloat16 const*)",
        "void vllm::dynamic_scaled_int8_quant_kernel<c10::BFloat16, float>(c10::BFloat16 const*)",
        "void vllm::rms_norm_dynamic_per_token_quant_kernel<c10::BFloat16, signed char, true>(...)",
        "void flashinfer::norm::FusedAddRMSNormKernel<8, __nv_bfloat16>(__nv_bfloat16*)",
        "quantize_kernel",
        "rmsnorm_quantize_kernel",
        "silu_mul_quantize_kernel",
        "dequantize_kernel",
    ),
    Kernel.ATTENTION: (
        FLASH,
        "void flash::prepare_varlen_num_blocks_kernel<1, true>(flash::prepare_seqlen_args)",
        "void cutlass::device_kernel<flash::FlashAttnFwdCombine<cute::tuple<cute::C<8> >, 128> >",
        "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, __nv_bfloat16, (vllm::Fp8KV)0>",
        "void vllm::rotary_embedding_kernel<c10::BFloat16, true>(long const*, c10::BFloat16*)",
        "kernel_unified_attention_2d",
        "void flashinfer::BatchPrefillWithPagedKVCacheKernel<flashinfer::KernelTraits<1> >",
        "fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausalVarSeqQ128Kv128StaticSwapsAbForGen",
    ),
    Kernel.OTHER: (
        "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, at::native::ArgMaxOps>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>>(int)",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)",
        "Memcpy DtoH (Device -> Pinned)",
        "Memset (Device)",
        "void flashinfer::sampling::TopKTopPSamplingFromProbKernel<1024, true>(float*)",
        "_gather_block_tables_kernel",
    ),
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in KERNELS.items() for name in names]
)
def test_a_kernel_is_of_its_kind(kind: Kernel, name: str) -> None:
    assert kind_of(name) is kind


def test_kernels_of_ours_are_all_known(root: Path) -> None:
    """A new kernel must not fall among the others without anyone noticing."""
    jitted = re.compile(r"^def (\w*kernel)\(", re.MULTILINE)
    compiled = re.compile(r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")
    found = {
        name
        for path in sorted((root / "kernels").rglob("*"))
        if path.suffix in (".py", ".cu")
        for name in (jitted if path.suffix == ".py" else compiled).findall(path.read_text())
    }
    assert {"quantize_kernel", "sparse_gemm"} <= found
    assert not {name for name in found if kind_of(name) is Kernel.OTHER}


def test_shares_are_fractions_of_the_busy_time() -> None:
    found = shares({"nvjet_a": 50.0, "sparse_gemm": 10.0, FLASH: 20.0, "Memset (Device)": 20.0})
    assert found == pytest.approx({"gemm": 0.6, "fused": 0.0, "attention": 0.2, "other": 0.2})
    assert list(found) == ["gemm", "fused", "attention", "other"]


def test_nothing_measured_has_no_shares() -> None:
    assert shares({}) == {}
    assert shares({"nvjet_a": 0.0}) == {}
