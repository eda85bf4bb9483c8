"""Programs that a machine may lack, unpacked from Debian packages into the cache.

They are never installed: Debian's containerd would take the place of a machine's own Docker.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from e2e.cluster.commands import attempt, run
from e2e.cluster.model import ClusterError, Log

PROGRAMS = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "openssl": "openssl",
}
"""Each program that the local cluster runs, and the package it comes in."""
ALWAYS = {
    "usr/lib/cni/bridge": "containernetworking-plugins",
    "usr/lib/cni/host-local": "containernetworking-plugins",
    "usr/lib/cni/loopback": "containernetworking-plugins",
    "bin/busybox": "busybox-static",
}
"""Files that are taken from packages wherever we are, by their place in the package."""
NOT_NEEDED = {"iptables"}
"""Depended on by the CNI plugins that are not used here."""


@dataclass(frozen=True)
class Packages:
    """The unpacked packages, and how to call what is in them."""

    root: Path

    @cached_property
    def environment(self) -> dict[str, str]:
        """PATH and library path with which a component finds the unpacked programs."""
        places = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
        paths = [
            os.environ.get("PATH", ""),
            *(f"/{place}" for place in places),
            *(str(self.root / place) for place in places),
        ]
        found = {"PATH": os.pathsep.join(filter(None, paths))}
        triplet = f"{platform.machine()}-linux-gnu"
        libraries = [self.root / "usr/lib" / triplet, self.root / "lib" / triplet]
        if present := [str(folder) for folder in libraries if folder.is_dir()]:
            before = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
            found["LD_LIBRARY_PATH"] = os.pathsep.join([*before, *present])
        return found

    def program(self, name: str) -> str:
        """The path of a program, from the machine or else from a package."""
        if found := shutil.which(name, path=self.environment["PATH"]):
            return found
        raise ClusterError(f"the program {name} is neither on this machine nor in its packages")

    def file(self, place: str) -> Path:
        """A file that always comes from a package."""
        return self.root / place


def packages(cache: Path, programs: Mapping[str, str], log: Log) -> Packages:
    """Fetch and unpack the packages of what this machine lacks, once."""
    found = Packages(cache / "packages")
    wanted = {
        package
        for name, package in programs.items()
        if not shutil.which(name, path=found.environment["PATH"])
    }
    wanted |= {package for place, package in ALWAYS.items() if not found.file(place).exists()}
    if not wanted:
        return found
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ClusterError(
            f"this machine lacks {', '.join(sorted(wanted))} and has no apt-get to fetch them:"
            " install them"
        )
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        unpacked, archives = Path(scratch, "root"), Path(scratch, "archives")
        archives.mkdir()
        # What was fetched earlier stays: only the sum of all is put in place.
        if found.root.exists():
            shutil.copytree(found.root, unpacked, symlinks=True)
        names = _with_dependencies(wanted, log)
        log(f"fetching Debian packages, not installing them: {' '.join(sorted(names))}")
        run("apt-get", "download", "-q", *sorted(names), cwd=archives)
        for archive in sorted(archives.iterdir()):
            run("dpkg-deb", "-x", archive, unpacked)
        shutil.rmtree(found.root, ignore_errors=True)
        unpacked.rename(found.root)
    return Packages(found.root)


def _with_dependencies(wanted: set[str], log: Log) -> set[str]:
    """The packages and what they depend on, less what is installed."""
    kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    command = ["apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in kinds)]
    listed = attempt(*command, *wanted)
    if listed.returncode or not wanted <= set(listed.stdout.split()):
        log("apt-get update (no list of packages yet)")
        run("apt-get", "update", "-q")
    lines = run(*command, *sorted(wanted)).splitlines()
    names = {line for line in lines if line[:1].isalnum()} - NOT_NEEDED
    status = "${Package} ${db:Status-Status}\n"
    installed = run("dpkg-query", "-W", "-f", status).splitlines()
    return names - {line.split()[0] for line in installed if line.endswith(" installed")} | wanted
