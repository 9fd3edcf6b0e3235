"""What a machine has, as /proc/meminfo and a CUDA driver say it; the driver is a stub compiled here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from safecode_trt.errors import BackendError
from safecode_trt.runtime import device

DRIVER = """
#include <stddef.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int size, int device) {
    for (const char *from = "Fake GPU"; size && (*name++ = *from++); size--) {}
    return device != 7;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 12 : attribute == 76 ? 1 : -1;
    return device != 7;
}
static int depth, pushed;
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &depth; depth++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { depth--; return 0; }
int cuCtxPushCurrent_v2(void *context) { pushed++; return context != &depth; }
int cuCtxPopCurrent_v2(void **context) { pushed--; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = 5000000000u; *total = 8000000000u;
    return pushed == 1 && depth == 1 ? %(memory)d : 201;
}
int left_behind(void) { return depth + pushed; }
"""


def stub(folder: Path, **codes: int) -> str:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to make a driver with")
    source, library = folder / "driver.c", folder / "libdriver.so"
    source.write_text(DRIVER % {"init": 0, "memory": 0, **codes})
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def test_the_first_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER", stub(tmp_path))
    found = device.cuda_device()
    assert found == device.CudaDevice(
        name="Fake GPU", compute_capability="121", free_memory=5_000_000_000, total_memory=8_000_000_000
    )
    import ctypes

    assert ctypes.CDLL(device.DRIVER).left_behind() == 0


def test_no_driver_and_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER", str(tmp_path / "absent.so"))
    assert device.cuda_device() is None
    monkeypatch.setattr(device, "DRIVER", stub(tmp_path, init=100))
    assert device.cuda_device() is None


@pytest.mark.parametrize(("codes", "call"), [({"init": 803}, "cuInit"), ({"memory": 2}, "cuMemGetInfo")])
def test_a_driver_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: dict[str, int], call: str
) -> None:
    monkeypatch.setattr(device, "DRIVER", stub(tmp_path, **codes))
    with pytest.raises(BackendError, match=f"failed in {call} with code {next(iter(codes.values()))}"):
        device.cuda_device()


def test_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meminfo"
    monkeypatch.setattr(device, "MEMINFO", path)
    assert device.free_memory() is None
    path.write_text("MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:   2048 kB\n")
    assert device.free_memory() == 2 << 20
    path.write_text("MemTotal:  9000 kB\n")
    assert device.free_memory() is None
