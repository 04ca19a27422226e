"""Memory and temperature of the devices that workers use, as far as their backend tells."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily

from tpudeploy.contracts.backend import DeviceInfo
from tpudeploy.launch.loaded import LoadedModel

_log = logging.getLogger(__name__)
_FRESH_S = 5.0
"""However often somebody asks, devices are asked no oftener than that."""


class DeviceWatch:
    """Asks the backend, beside the workers that compute. Thread-safe."""

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self._backend = models[0].backend
        self._used = {device for model in models for device in model.devices}
        self.held_bytes = sum(_held_bytes(model) for model in models)
        self._lock = threading.Lock()
        self._asked_at = 0.0
        self._devices: list[DeviceInfo] = []

    def gauges(self) -> Iterator[GaugeMetricFamily]:
        """What is known of the devices."""
        return device_gauges([(str(device.id), device) for device in self.ask()], self.held_bytes)

    def ask(self) -> list[DeviceInfo]:
        """The devices as they are now, or were a moment ago."""
        # Whoever comes meanwhile does not wait: a device that never answers is to keep one thread and not all of them.
        if self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return self._devices

    def _refresh(self) -> None:
        if time.monotonic() - self._asked_at <= _FRESH_S:
            return
        self._asked_at = time.monotonic()
        try:
            found = self._backend.devices()
        except Exception as error:  # noqa: BLE001 - a backend may be anybody's; figures are not worth a failure
            _log.warning("devices cannot be asked: %s: %s", type(error).__name__, error)
            found = []
        self._devices = [device for device in found if not self._used or device.id in self._used]


def device_gauges(devices: Iterable[tuple[str, DeviceInfo]], held_bytes: int) -> Iterator[GaugeMetricFamily]:
    """Figures of devices.

    :param devices: each with its name.
    :param held_bytes: memory of all of them that models take.
    """
    total = GaugeMetricFamily("tpudeploy_device_memory_bytes", "Memory of a device.", labels=["device"])
    used = GaugeMetricFamily("tpudeploy_device_memory_used_bytes", "Of it in use, by anybody.", labels=["device"])
    heat = GaugeMetricFamily("tpudeploy_device_temperature_celsius", "Of the chip.", labels=["device"])
    load = GaugeMetricFamily("tpudeploy_device_utilization_percent", "How busy it is.", labels=["device"])
    for name, device in devices:
        for family, value in (
            (total, device.memory_bytes),
            (used, device.used_bytes),
            (heat, device.temperature_celsius),
            (load, device.utilization_percent),
        ):
            if value is not None:
                family.add_metric([name], value)
    yield from (total, used, heat, load)
    yield GaugeMetricFamily("tpudeploy_model_memory_bytes", "Device memory of weights and buffers.", held_bytes)


def _held_bytes(model: LoadedModel) -> int:
    report = model.engine.session.memory()
    return report.weights_bytes + report.buffers_bytes
