"""One graph through TensorRT or TensorRT-RTX: their packages have the same words for what is needed here.

What its annotations mean is said in runtime/backends/trt_library.py. Networks are strongly typed:
the graph's own types decide, and no precision is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from safecode_trt import atomic
from safecode_trt.engine_entry import Flavour
from safecode_trt.errors import BackendError, ConfigError
from safecode_trt.export.engine_config import EngineConfig
from safecode_trt.progress import Note, Progress
from safecode_trt.runtime.backends.trt_library import TensorRTLibrary

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

__all__ = ["Shapes", "TensorRT"]

Shapes = Mapping[str, Sequence[Sequence[int]]]
"""The least, usual and largest shape of every input."""


@dataclass(frozen=True, slots=True)
class TensorRT:
    """An installed package as a builder of engines."""

    library: TensorRTLibrary

    @classmethod
    def load(cls, flavour: Flavour) -> TensorRT:
        """Imports the flavour's package.

        Raises:
            BackendError: it is not installed, or its libraries are not found.
        """
        return cls(TensorRTLibrary.load(flavour))

    @property
    def flavour(self) -> Flavour:
        return self.library.flavour

    @property
    def version(self) -> str:
        return self.library.version

    def build(
        self,
        model: bytes,
        path: Path,
        profiles: Sequence[Shapes],
        settings: EngineConfig,
        report: Progress,
        note: Note,
    ) -> memoryview:
        """The serialised engine of a serialised ONNX model whose weights lie next to `path`.

        `report` is called from TensorRT's threads, with a phase's name, the steps done and the steps in all. `note` is
        told of a timing cache that could not be saved. Ctrl-C ends the build at its next step.

        Raises:
            BackendError: TensorRT does not take the graph or finds no kernels for it.
            ConfigError: a setting is nothing that this TensorRT knows.
        """
        cancel = Event()
        monitor = _monitor(self.library.trt, report, cancel)
        plan = _beside(lambda: self._plan(model, path, profiles, settings, monitor, note), cancel)
        if monitor.failure is not None:
            raise monitor.failure
        if plan is None:
            raise self._refused("cannot build", path, self.library.log.errors)
        return memoryview(plan)

    def _plan(
        self,
        model: bytes,
        path: Path,
        profiles: Sequence[Shapes],
        settings: EngineConfig,
        monitor: Any,
        note: Note,
    ) -> tensorrt.IHostMemory | None:
        trt, log = self.library.trt, self.library.log
        log.errors.clear()
        builder: tensorrt.Builder = trt.Builder(log)
        network: tensorrt.INetworkDefinition = builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        parser: tensorrt.OnnxParser = trt.OnnxParser(network, log)
        parsed: bool = parser.parse(model, str(path))
        if not parsed:
            raise self._refused("does not take", path, _parser_errors(parser) or log.errors)
        config: tensorrt.IBuilderConfig = self._config(builder, profiles, settings)
        config.progress_monitor = monitor
        plan: tensorrt.IHostMemory | None = builder.build_serialized_network(network, config)
        if plan is not None and settings.timing_cache:
            _save_timing_cache(config, settings.timing_cache, note)
        return plan

    def _config(
        self, builder: tensorrt.Builder, profiles: Sequence[Shapes], settings: EngineConfig
    ) -> tensorrt.IBuilderConfig:
        trt = self.library.trt
        config: tensorrt.IBuilderConfig = builder.create_builder_config()
        for shapes in profiles:
            profile: tensorrt.IOptimizationProfile = builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                profile.set_shape(name, least, usual, most)
            added: int = config.add_optimization_profile(profile)
            if added < 0:
                raise BackendError(f"{self.flavour} {self.version} takes no profile with the shapes {shapes}")
        if settings.opt_level is not None:
            config.builder_optimization_level = settings.opt_level
        if settings.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
        if self.flavour == "tensorrt-rtx":
            _set_targets(self.library.trt, config, settings.compute_capabilities)
        if settings.timing_cache:
            _load_timing_cache(config, settings.timing_cache)
        return config

    def _refused(self, how: str, path: Path, errors: Sequence[str]) -> BackendError:
        reason = next(iter(errors), "it says no reason")
        return BackendError(f"{self.flavour} {self.version} {how} {path.name}: {reason}")


def _set_targets(trt_rtx: Any, config: tensorrt_rtx.IBuilderConfig, capabilities: Sequence[str]) -> None:
    """Which GPUs the engine is for: with tensorrt-rtx none of them need be here."""
    known: Mapping[str, Any] = trt_rtx.ComputeCapability.__members__
    config.num_compute_capabilities = len(capabilities)
    for place, capability in enumerate(capabilities):
        if f"SM{capability}" not in known:
            names = ", ".join(name.removeprefix("SM") for name in known if name.startswith("SM"))
            raise ConfigError(
                f"{capability} is not known to tensorrt-rtx {trt_rtx.__version__}; known: {names}",
                field="compute_capabilities",
            )
        config.set_compute_capability(known[f"SM{capability}"], place)


def _parser_errors(parser: tensorrt.OnnxParser) -> list[str]:
    errors = []
    for place in range(parser.num_errors):
        error: tensorrt.ParserError = parser.get_error(place)
        errors.append(f"node {error.node_name()} ({error.node_operator()}): {error.desc()}")
    return errors


def _load_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> None:
    """What earlier builds on this GPU have measured; an absent file is an empty cache."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}", field="timing_cache"
        ) from error
    cache: tensorrt.ITimingCache = config.create_timing_cache(data)
    taken: bool = config.set_timing_cache(cache, False)
    if not taken:
        raise BackendError(f"{path} is the timing cache of another TensorRT or GPU; name another file")


def _save_timing_cache(config: tensorrt.IBuilderConfig, path: Path, note: Note) -> None:
    """A cache that cannot be saved costs the next build some time; the engine is whole without it."""
    cache: tensorrt.ITimingCache = config.get_timing_cache()
    try:
        atomic.write_bytes(path, memoryview(cache.serialize()))
    except OSError as error:
        note(f"the timing cache {path} could not be saved: {error.strerror or error}")


def _beside(work: Callable[[], Any], cancel: Event) -> Any:
    """The result of `work`, done in a thread, where no Ctrl-C arrives.

    TensorRT swallows what is raised while it calls the log, and while it works Python would see no Ctrl-C at all.
    """
    interrupt: KeyboardInterrupt | None = None
    with ThreadPoolExecutor(1) as pool:
        done: Future[Any] = pool.submit(work)
        while True:
            try:
                while not done.done():
                    wait([done], timeout=0.1)
                break
            except KeyboardInterrupt as caught:
                interrupt = caught
                cancel.set()
    if interrupt is not None:
        raise interrupt
    return done.result()


def _monitor(trt: Any, report: Progress, cancel: Event) -> Any:
    """Tells of the phases as they go on. What `report` raises ends the build, and is kept as `failure`."""

    class Monitor(trt.IProgressMonitor):
        """TensorRT calls it from several threads, and must not see an exception."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.failure: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return not cancel.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.steps.get(phase_name, 0))

        def tell(self, phase: str, done: int) -> None:
            if cancel.is_set():
                return
            try:
                report(phase, done, self.steps.get(phase, done))
            except BaseException as error:  # whatever it is, it is raised again where the build was asked for
                self.failure = error
                cancel.set()

    return Monitor()
