"""What a person waits for: the help of both programs, and a site's way from the start of its process to its first step.

    python -m benchmarks.startup [--repeats 5] [--images 1000] [--threads 2] [--json]

Everything is started anew in a process of its own, and the disk's cache is warm. The site is the demo's, with the
embedded backbone and as many digits as `--images` says; it does what `fedmvp-client run` does up to the first DP-SGD
step, without a server. Wall seconds, the fastest and the median of the repeats, and the fastest in seconds of processor
time, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.first_step import STARTED, Seconds
from demo.digits import NAMES, write_digits
from fedmvp.study.config import load_client_config
from fedmvp.study.credentials import load_study
from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import create_study
from privacy.ledger import Ledger

PROGRAMS = ("fedmvp-client", "fedmvp-server")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = measure(options.repeats, options.images, options.threads)
    if options.json:
        print(json.dumps(report))
        return
    print(f"{'seconds':50} fastest  median  processor")
    for name, repeats in report.items():
        wall, processor = zip(*repeats, strict=True)
        print(f"{name:50} {min(wall):7.2f} {statistics.median(wall):7.2f} {min(processor):10.2f}")


def measure(repeats: int, images: int, threads: int) -> dict[str, list[Seconds]]:
    """Wall and processor seconds of every repeat by what was waited for."""
    report = {f"{name} --help": [help_seconds(name) for _ in range(repeats)] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        config = make_site(Path(folder), images)
        for _ in range(repeats):
            for name, seconds in run_first_step(config, threads).items():
                report.setdefault(f"first step: {name}", []).append(seconds)
            for cached in (config.parent / "cache").glob("*"):
                cached.unlink()
    return report


def help_seconds(program: str) -> Seconds:
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([Path(sys.executable).parent / program, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, processor


def run_first_step(config: Path, threads: int) -> dict[str, Seconds]:
    command = [sys.executable, "-m", "benchmarks.first_step", str(config)]
    environment = os.environ | {STARTED: str(time.time()), "OMP_NUM_THREADS": str(threads)}
    finished = subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    laps: dict[str, Seconds] = json.loads(finished.stdout.splitlines()[-1])
    return laps


def make_site(folder: Path, images: int) -> Path:
    """A joined site with a ledger and part of the demo's digits; returns its client.toml."""
    data = write_digits(folder / "digits", 1).sites[0]
    for name in NAMES:
        for file in sorted((data / name).iterdir())[max(1, images // len(NAMES)) :]:
            file.unlink()
    policy = (Path(__file__).parent.parent / "demo" / "policy.toml").read_text()
    sites = [
        SiteOptions(name, name, data, kind="image-folder", dataset_id=name, epsilon_max=8.0)
        for name in ("site-1", "site-2", "site-3", "site-4")
    ]
    study = create_study(folder / "study", policy, sites=sites)
    config = load_client_config(study.site_configs["site-1"], environment={})
    privacy = load_study(config.study).policy.privacy_parameters(1)
    Ledger.create(
        config.privacy.ledger,
        dataset_id="site-1",
        epsilon_max=8.0,
        delta=privacy.delta,
        unit=privacy.unit,
    ).close()
    return study.site_configs["site-1"]


if __name__ == "__main__":
    main()
