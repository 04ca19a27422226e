"""The backends ``sail-pcie``, ``sail-soc`` and ``sail-multi``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpudeploy.contracts.backend import Availability, DeviceInfo, MemoryHeap, Session
from tpudeploy.contracts.loadable import Loadable
from tpudeploy.errors import BackendError
from tpudeploy_backends.bmrt.backend import BmrtBackend
from tpudeploy_backends.bmrt.bmodel_backend import BmodelBackend
from tpudeploy_backends.bmrt.state import SIMULATED_BYTES
from tpudeploy_backends.device_choice import check_one_each, check_there, free_first
from tpudeploy_backends.device_lock import lock_devices
from tpudeploy_backends.hardware import Hardware, Libsophon, Platform, find_hardware, find_libsophon
from tpudeploy_backends.hardware.readiness import hardware_availability
from tpudeploy_backends.sail.module import count_devices, hush_exit, import_sail, is_installed

PLATFORM_VARIABLE = "TPUDEPLOY_SAIL_PLATFORM"
_PLATFORMS = {"pcie": Platform.PCIE, "soc": Platform.SOC}
_CHIP = "BM1684X"


class SailBackend(BmodelBackend):
    """What the three have in common.

    Environment: ``TPUDEPLOY_SAIL_PLATFORM``, ``pcie`` or ``soc``: what this machine is to be taken for. Where there is
    no chip, but sail sees one, it is a simulated one.

    :param root: the folder that takes the place of ``/`` in looking for hardware; for tests.
    """

    platform: Platform | None = None
    """The platform that it is for, or None for either."""
    _rank = 0

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        # A sail without a chip drives a simulator: to be used when asked for, not instead of the CPU.
        self.priority = self._rank if find_hardware(root).chips else 1

    def availability(self) -> Availability:
        """Whether this is the platform, sail is installed, and it sees a chip."""
        hardware = find_hardware(self._root)
        present = hardware.platform is not None or hardware.driver_loaded
        try:
            elsewhere = self._elsewhere(hardware)
            if elsewhere is not None:
                return elsewhere
            if present:
                # Whether its libraries are found is for sail itself to say.
                libsophon = find_libsophon(self._root) or Libsophon(Path(), "", simulated=False)
                state = hardware_availability(hardware, libsophon)
                if not state.available:
                    return state
            sail = import_sail()
            self._device_ids(sail, hardware)
        except BackendError as error:
            return Availability(available=False, reason=error.message, remedy=error.hint, absent=not is_installed())
        return Availability(available=True)

    def devices(self) -> Sequence[DeviceInfo]:
        """The chips, as libbmlib tells of them; of those that only sail sees, that they are there."""
        hardware = find_hardware(self._root)
        told = _told_of_chips(self._root, hardware)
        if told:
            return told
        try:
            ids = self._device_ids(import_sail(), hardware)
        except BackendError:
            return []
        if hardware.chips:
            platform = hardware.platform.value if hardware.platform else ""
            return [DeviceInfo(id=number, name=_CHIP, platform=platform) for number in ids]
        return [DeviceInfo(id=number, name=f"{_CHIP} (simulated)", memory_bytes=SIMULATED_BYTES) for number in ids]

    def default_devices(self, chips: int) -> tuple[int, ...]:
        """The first chips that no other process uses; simulated ones are each process's own."""
        chosen = free_first(find_hardware(self._root).device_ids)[:chips]
        return chosen if len(chosen) == chips else super().default_devices(chips)

    def check_devices(self, devices: Sequence[int], chips: int) -> None:
        """See :meth:`Backend.check_devices`."""
        check_one_each(devices, chips)
        check_there(devices, self._device_ids(import_sail(), find_hardware(self._root)), "sail sees")

    def load(self, folder: Path, nets: Loadable, *, devices: Sequence[int] = (0,)) -> Session:
        """See :meth:`Backend.load`; chips are locked, and every argument is checked before sail sees it."""
        from tpudeploy_backends.sail.session import SailSession

        if nets.format not in self.formats:
            raise BackendError(
                f"the backend {self.name} cannot run a bundle of format {nets.format.value}.",
                hint="Compile one with `tpudeploy compile`, or choose --backend cpu.",
            )
        self.check_devices(devices, nets.chips)
        sail, hardware = import_sail(), find_hardware(self._root)
        if not hardware.chips:  # each process has simulated chips of its own
            hush_exit()
            heap = MemoryHeap(name="memory", total_bytes=SIMULATED_BYTES, free_bytes=SIMULATED_BYTES)
            heaps = [(heap,) for _ in devices]
            return SailSession(sail, folder, nets, devices, heaps=heaps, simulated=True, released=_nothing)
        locks = lock_devices(devices)
        try:
            told = {info.id: info.heaps for info in _told_of_chips(self._root, hardware)}
        except BaseException:
            locks.close()
            raise
        known = [told.get(number, ()) for number in devices]
        return SailSession(sail, folder, nets, devices, heaps=known, simulated=False, released=locks.close)

    def _elsewhere(self, hardware: Hardware) -> Availability | None:
        """That this machine is the other platform. :raises BackendError: the variable names none."""
        named = os.environ.get(PLATFORM_VARIABLE, "").strip().lower()
        if named and named not in _PLATFORMS:
            raise BackendError(
                f"{PLATFORM_VARIABLE} is {named!r}, which is no platform.", hint=f"Use one of {', '.join(_PLATFORMS)}."
            )
        # Where there is no chip, sail drives a simulator if anything: it is taken for a card.
        found = _PLATFORMS.get(named) or hardware.platform or Platform.PCIE
        if self.platform in (None, found):
            return None
        reason = (
            "this machine is a SoC, not the host of a card." if found is Platform.SOC else "this machine is no SoC."
        )
        remedy = f"Choose --backend sail-{'soc' if found is Platform.SOC else 'pcie'}."
        return Availability(available=False, absent=True, reason=reason, remedy=remedy)

    def _device_ids(self, sail: Any, hardware: Hardware) -> tuple[int, ...]:
        """The chips that there are. :raises BackendError: there are none."""
        ids = hardware.device_ids or tuple(range(count_devices(sail)))
        if not ids:
            raise BackendError("sail sees no chip.", hint="See `tpudeploy doctor`.")
        return ids


class SailOneChipBackend(SailBackend):
    """What drives one chip."""

    _rank = 30

    def check_devices(self, devices: Sequence[int], chips: int) -> None:
        """See :meth:`Backend.check_devices`."""
        if chips != 1:
            raise BackendError(
                f"the model is divided over {chips} chips, and the backend {self.name} drives one.",
                hint="Choose --backend sail-multi.",
            )
        super().check_devices(devices, chips)


class SailPcieBackend(SailOneChipBackend):
    """One chip of a card."""

    name = "sail-pcie"
    summary = "one chip of a PCIe card, through sophon.sail"
    platform = Platform.PCIE


class SailSocBackend(SailOneChipBackend):
    """The chip that the program runs on."""

    name = "sail-soc"
    summary = "the chip of this SoC, through sophon.sail"
    platform = Platform.SOC


class SailMultiBackend(SailBackend):
    """Several chips, each with its own engine and its own part of the bundle."""

    name = "sail-multi"
    summary = "bundles for several chips, through sophon.sail"
    _rank = 20


def _told_of_chips(root: Path, hardware: Hardware) -> Sequence[DeviceInfo]:
    """Chips as the backend bmrt describes them; none where it cannot."""
    if not hardware.chips:
        return ()
    try:
        return BmrtBackend(root).devices()
    except BackendError:
        return ()


def _nothing() -> None:
    """Nothing was locked."""
