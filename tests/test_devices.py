from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from pastille import devices

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
model\t\t: 2
model name\t: AMD EPYC 9V74 80-Core Processor
flags\t\t: fpu sse sse2 avx avx2 avx512f avx512bw avx_vnni avx512_vnni

processor\t: 1
model name\t: another
"""
HASWELL = "model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz\nflags\t\t: fpu sse2 avx f16c avx2 bmi2\n"
RASPBERRY_PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b

Revision\t: d04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
GRAVITON_3 = """processor\t: 0
Features\t: fp asimd asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
OLD_ARM = "Processor\t: ARMv7\nFeatures\t: half thumb neon vfpv4\nHardware\t: BCM2835\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name", "isa"),
    [
        (EPYC, "AMD EPYC 9V74 80-Core Processor", "avx512-vnni"),
        (HASWELL, "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz", "avx2"),
        (RASPBERRY_PI_5, "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)", "neon-dotprod"),
        (GRAVITON_3, "Neoverse V1", "neon-i8mm"),
        (OLD_ARM, "BCM2835", "neon"),
        ("flags: sse2 avx512f avx512bw avx2", "", "avx512"),
        ("flags: amx_int8 avx512_vnni", "", "amx-int8"),
        ("flags: sse2", "", "sse"),
        ("", "", ""),
        ("no colon\n: no key\n\n", "", ""),
    ],
)
def test_processors_are_told_apart(cpuinfo: str, name: str, isa: str) -> None:
    assert devices.parse_cpu_name(cpuinfo) == name
    assert devices.parse_isa(cpuinfo) == isa


def test_a_board_names_itself_in_the_device_tree() -> None:
    found = devices.parse_cpu_name(GRAVITON_3, board="NVIDIA Orin NX\x00")
    assert found == "NVIDIA Orin NX (Neoverse V1)"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> dict[str, Path]:
    """A /proc and a /sys/fs/cgroup of files."""
    for name, text in {"proc/self/cgroup": cgroup, **{f"cg/{k}": v for k, v in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"proc": root / "proc", "cgroups": root / "cg"}


V1 = "9:name=systemd:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores", "memory"),
    [
        ("0::/", {}, None, None),
        ("0::/", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ("0::/a/b", {"a/b/cpu.max": "150000 100000\n", "a/memory.max": "1024\n"}, 1.5, 1024),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0, None),
        ("0::/../../kubepods/x", {"cpu.max": "50000 100000", "memory.max": "99"}, 0.5, 99),
        (
            V1,
            {
                "cpu/docker/abc/cpu.cfs_quota_us": "300000\n",
                "cpu/docker/abc/cpu.cfs_period_us": "100000\n",
                "memory/docker/abc/memory.limit_in_bytes": "2048\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            3.0,
            2048,
        ),
        # A container whose own cgroup is mounted as the root, though /proc gives the host's path.
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, None),
        (V1, {"memory/memory.limit_in_bytes": "4096\n"}, None, 4096),
        ("broken", {"cpu.max": "1 0"}, None, None),
        ("0::/", {"cpu.max": "100 0", "memory.max": "many"}, None, None),
    ],
)
def test_a_containers_limits_are_found(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: float | None, memory: int | None
) -> None:
    paths = machine(tmp_path, cgroup, files)
    assert devices.cpu_quota(**paths) == cores
    assert devices.memory_limit(**paths) == memory


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (2.7, 2), (0.5, 1), (100.0, 8)])
def test_cores_are_the_fewest_that_anything_grants(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(devices, "cpu_quota", lambda: quota)
    assert devices.usable_cores() == cores


def test_memory_is_the_least_that_anything_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_read", lambda path: "MemTotal: 8 kB\n")
    for limit, expected in [(None, 8192), (1024, 1024), (1 << 40, 8192)]:
        monkeypatch.setattr(devices, "memory_limit", lambda limit=limit: limit)
        assert devices.memory_bytes() == expected


def test_without_proc_the_platform_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_read", lambda path: "")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    assert devices.cpu_name() == "AMD64"
    assert devices.isa() == "amd64"


def test_macos_is_asked_by_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"machdep.cpu.brand_string": "Apple M2", "hw.optional.arm.FEAT_DotProd": "1"}
    monkeypatch.setattr(devices, "_read", lambda path: "")
    monkeypatch.setattr(devices, "_sysctl", lambda key: answers.get(key, ""))
    assert devices.cpu_name() == "Apple M2"
    assert devices.isa() == "neon-dotprod"


def test_this_machine_has_a_name_for_everything() -> None:
    here = devices.this_machine(threads=3, runtime="onnxruntime", runtime_version="1.2")
    assert (here.threads, here.runtime, here.runtime_version) == (3, "onnxruntime", "1.2")
    assert here.device
    assert here.isa
    assert here.os.split()[0] == platform.system()
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert devices.memory_bytes() > 1 << 20
