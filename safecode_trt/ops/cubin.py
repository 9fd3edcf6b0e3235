"""kernels.cu as machine code for one architecture: compiled by NVRTC, and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

from safecode_trt import atomic
from safecode_trt.cache_folder import cache_folder
from safecode_trt.errors import BackendError
from safecode_trt.ops.bindings import checked, load_nvrtc

__all__ = ["OPTIONS", "SOURCES", "compile_kernels", "load_cubin"]

SOURCES = ("kernels.cu", "sampling.cuh", "step.cuh", "block.cuh")
"""The program, then the files that it includes."""

OPTIONS = ("--std=c++17",)

_FOLDER = Path(__file__).parent
_DIGEST = hashlib.sha256().digest_size
_log = logging.getLogger(__name__)


def load_cubin(architecture: str, cache: Path | None = None) -> bytes:
    """The kernels for an architecture such as `sm_87`, from the cache or compiled and put there.

    A file of the cache that is not whole is made again; a cache that cannot be written is done without.

    Raises:
        BackendError: the kernels must be compiled, and NVRTC is missing or does not take them.
    """
    if (folder := cache or cache_folder("kernels")) is None:
        return compile_kernels(architecture)
    path = folder / f"{_key(architecture)}.cubin"
    kept = _read(path)
    if kept is not None:
        with suppress(OSError):
            os.utime(path)  # when it was used last
        return kept
    made = compile_kernels(architecture)
    try:
        _write(path, made)
    except OSError as error:
        _log.warning("the compiled kernels are not kept: %s", error)
    return made


def compile_kernels(architecture: str) -> bytes:
    """The kernels compiled by NVRTC, which needs no GPU.

    Raises:
        BackendError: NVRTC is missing or does not take the kernels.
    """
    nvrtc = load_nvrtc()
    texts = [(_FOLDER / name).read_bytes() for name in SOURCES]
    names = [name.encode() for name in SOURCES]
    program = checked(
        nvrtc.nvrtcCreateProgram(texts[0], names[0], len(names) - 1, texts[1:], names[1:]),
        "nvrtcCreateProgram",
    )
    try:
        options = [option.encode() for option in _options(architecture)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            log = bytes(checked(nvrtc.nvrtcGetProgramLogSize(program), "nvrtcGetProgramLogSize"))
            checked(nvrtc.nvrtcGetProgramLog(program, log), "nvrtcGetProgramLog")
            lines = log.rstrip(b"\0").decode(errors="replace").split("\n")
            raise BackendError(
                f"NVRTC does not compile the kernels for {architecture}: {status.name}: {lines[0].strip()}; "
                "it may be older than the GPU",
                fix="pip install --upgrade 'cuda-python[all]'",
            )
        cubin = bytes(checked(nvrtc.nvrtcGetCUBINSize(program), "nvrtcGetCUBINSize"))
        checked(nvrtc.nvrtcGetCUBIN(program, cubin), "nvrtcGetCUBIN")
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _options(architecture: str) -> tuple[str, ...]:
    return (f"--gpu-architecture={architecture}", *OPTIONS)


def _key(architecture: str) -> str:
    digest = hashlib.sha256()
    for part in (*_options(architecture), *SOURCES):
        digest.update(part.encode() + b"\0")
    for name in SOURCES:
        text = (_FOLDER / name).read_bytes()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _read(path: Path) -> bytes | None:
    """The machine code in a file that starts with its SHA-256; None if there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    cubin = data[_DIGEST:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == data[:_DIGEST] else None


def _write(path: Path, cubin: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, hashlib.sha256(cubin).digest() + cubin)
