"""NVIDIA GPUs that XLA compiles for without having any, described by their data sheets.

The compiler reads a GpuTargetConfigProto (xla/stream_executor/device_description.proto in
openxla/xla), and needs of it the sizes that limit a kernel, the compute capability and cuDNN's
version.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuTarget:
    """Sizes of one GPU."""

    name: str  # as JAX's device_kind
    capability: int  # major compute capability
    multiprocessors: int
    lanes: int  # float32 units of a multiprocessor
    shared: int  # KiB of shared memory of a multiprocessor; a block can have 1 KiB less
    l2: int  # MiB of cache
    clock: float  # GHz, boost
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes per second


# NVIDIA's data sheets (SXM) and the CUDA programming guide, table of technical specifications.
GPU_TARGETS = {
    "a100-40": GpuTarget("NVIDIA A100-SXM4-40GB", 8, 108, 64, 164, 40, 1.41, 42.3e9, 1.555e12),
    "a100-80": GpuTarget("NVIDIA A100-SXM4-80GB", 8, 108, 64, 164, 40, 1.41, 85.1e9, 2.039e12),
    "h100": GpuTarget("NVIDIA H100 80GB HBM3", 9, 132, 128, 228, 50, 1.98, 84.9e9, 3.35e12),
    "h200": GpuTarget("NVIDIA H200", 9, 132, 128, 228, 50, 1.98, 151.4e9, 4.8e12),
    "b200": GpuTarget("NVIDIA B200", 10, 148, 128, 228, 126, 1.965, 191.5e9, 7.67e12),
}


def target_config(gpu: GpuTarget) -> str:
    """Return the GpuTargetConfigProto of a GPU in text form."""
    # From Hopper on there are instructions of one generation only, such as wgmma.
    extension = "ACCELERATED_FEATURES" if gpu.capability >= 9 else "NONE"
    return f"""
gpu_device_info {{
  name: "{gpu.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {extension} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory:.0f}
  memory_bandwidth: {gpu.bandwidth:.0f}
  l2_cache_size: {gpu.l2 * 2**20}
  shared_memory_per_core: {gpu.shared * 2**10}
  shared_memory_per_block_optin: {(gpu.shared - 1) * 2**10}
  shared_memory_per_block: {48 * 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
