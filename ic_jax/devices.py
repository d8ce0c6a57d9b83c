"""Peak figures of accelerators, from the vendors' data sheets, by JAX's name of the device."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chip:
    """Peak figures of one device."""

    flops: float  # dense bfloat16, per second
    memory: float  # bytes that a program can use
    bandwidth: float  # of that memory, bytes per second
    links: float  # to the other devices of a machine or slice, bytes per second, one way
    network: float = 0.0  # to other machines, likewise; 0 where links reach all devices
    clock: float = 0.0  # cycles per second of a TPU's compiler; 0 where it estimates none

    @classmethod
    def of(cls, device: Any) -> "Chip | None":
        """Return the figures of a device; None if it is not listed."""
        # The longest name first: "TPU v5 lite" is not "TPU v5".
        names = sorted((n for n in CHIPS if device.device_kind.startswith(n)), key=len)
        return CHIPS[names[-1]] if names else None


GIB = 2.0**30

# TPU memory is what libtpu's compiler accepts, a little below the data sheet's. Links: TPU docs
# (cloud.google.com/tpu/docs, both directions there, hence halved) and NVIDIA's NVLink figures,
# likewise. Network: one InfiniBand card per GPU, as in NVIDIA's DGX machines. A TPU's clock is its
# peak divided by 2 for each multiplier of its matrix units: eight of 128 x 128 (v4, v5p) or four
# (v5e); for v6e, whose clock is not published, we assume four of 256 x 256.
CHIPS = {
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 39e9, 1.55e12, 32e9, network=25e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 39e9, 1.55e12, 300e9, network=25e9),
    "NVIDIA A100": Chip(312e12, 79e9, 2.0e12, 300e9, network=25e9),
    "NVIDIA H100": Chip(989e12, 79e9, 3.35e12, 450e9, network=50e9),
    "NVIDIA H200": Chip(989e12, 139 * GIB, 4.8e12, 450e9, network=50e9),
    "NVIDIA B200": Chip(2250e12, 175 * GIB, 7.67e12, 900e9, network=50e9),
    "TPU v4": Chip(275e12, 30.75 * GIB, 1.2e12, 150e9, clock=1.05e9),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, 0.82e12, 100e9, clock=1.5e9),
    "TPU v5": Chip(459e12, 95.74 * GIB, 2.77e12, 300e9, clock=1.75e9),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, 1.64e12, 224e9, clock=1.75e9),
}


def platform(device: Any) -> str:
    """Return "tpu", "gpu" or "cpu", whoever made the device."""
    return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
