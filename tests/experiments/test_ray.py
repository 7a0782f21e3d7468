"""A study on a Ray cluster of this machine: two worker processes, nothing beyond the loopback address."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from fedmvp.cli.experiment import experiment
from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments import engine_ray, sites_apart
from fedmvp.experiments.cell import Bench
from fedmvp.experiments.engine_ray import CellHost, RayEngine, WorkerSetup, cluster
from fedmvp.experiments.results import read_results
from fedmvp.experiments.run import LocalEngine, StudyRun, run_study
from fedmvp.experiments.site_host import RunningSums, SiteHost, SiteReport, pack_folder, unpack_folder
from fedmvp.experiments.sites_apart import ApartBench
from fedmvp.experiments.sweep import CellPlan, plan_cells
from tests.experiments.tiny_study import UNREPEATABLE, lasting, make_study, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def local(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The rows of one process."""
    run = study_run(root, tmp_path_factory.mktemp("local"))
    return lasting(run_study(run, LocalEngine(1)))


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())  # else Ray writes one into the home folder
        patch.delenv("RAY_ADDRESS", raising=False)
        with cluster(None, 2):
            yield


def study_run(root: Path, out: Path, *, secure_sum: bool = True) -> StudyRun:
    """Two seeds and two modes, so that there is something for each of two workers."""
    privacy = {"modes": ["record-local", "record-distributed"], "secure_sum": secure_sum}
    return StudyRun(make_study(root, study={"seeds": [0, 1]}, privacy=privacy), root, out)


def cells(run: StudyRun, method: str = "prompts") -> list[CellPlan]:
    return [plan for plan in plan_cells(run.study, [3]) if plan.entry.name == method]


class Hosts:
    """Sites in threads of this process, called as actors are."""

    def __init__(self, pool: ThreadPoolExecutor, count: int = 3) -> None:
        self.pool = pool
        self.sites = [SiteHost() for _ in range(count)]

    def call(self, site: int, method: str, argument: Any) -> Any:
        return self.pool.submit(getattr(self.sites[site], method), argument)


def final_parameters(bench: Bench, plan: CellPlan, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a cell and return its outcome."""
    seen: list[Any] = []
    real = type(bench).federate

    def federate(self: Bench, *args: Any) -> Any:
        seen.append(real(self, *args))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(type(bench), "federate", federate)
        bench.run(plan)
    return seen[0]


@pytest.mark.timeout(300)
def test_a_cluster_of_two_processes_gives_the_rows_of_one_process(
    root: Path, local: list[Any], tmp_path: Path, two_workers: None
) -> None:
    assert lasting(run_study(study_run(root, tmp_path / "out"), RayEngine())) == local


@pytest.mark.long
def test_a_cluster_gives_the_rows_of_one_process_also_when_a_worker_is_killed(
    root: Path, local: list[Any], tmp_path: Path, two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study_run(root, tmp_path / "out")
    log, victim = tmp_path / "log", cells(run)[0].cell.name

    class Mortal(CellHost):
        def run(self, plan: CellPlan) -> Any:
            earlier = log.read_text().split() if log.exists() else []
            with log.open("a") as file:
                file.write(f"{plan.cell.name}\n")
            if plan.cell.name == victim and victim not in earlier:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(plan)

    monkeypatch.setattr(engine_ray, "CellHost", Mortal)
    results = run_study(run, RayEngine())

    assert lasting(results) == local
    runs = Counter(log.read_text().split())
    assert runs.pop(victim) == 2
    assert set(runs.values()) == {1}, "a finished cell was run again"


@pytest.mark.long
def test_sites_that_are_actors_give_the_rows_of_one_process(
    root: Path, local: list[Any], tmp_path: Path, two_workers: None
) -> None:
    results = run_study(study_run(root, tmp_path), RayEngine(workers=1, sites_as_actors=True))

    assert lasting(results) == local
    sent = [
        measured.value for _, measured in read_results(results).rows if measured.metric in UNREPEATABLE - {"seconds"}
    ]
    assert sent
    assert min(sent) > 0


@pytest.mark.long
def test_a_cell_is_run_again_when_a_site_is_lost(
    root: Path, local: list[Any], tmp_path: Path, two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study_run(root, tmp_path / "out")
    plan, lost = cells(run)[0], tmp_path / "lost"

    class Losing(CellHost):
        def _call(self, site: int, method: str, argument: Any) -> Any:
            answer = super()._call(site, method, argument)
            if method == "take_part" and site == 2 and not lost.exists():
                lost.touch()
                engine_ray._ray().kill(self._sites[site])
            return answer

    monkeypatch.setattr(engine_ray, "CellHost", Losing)
    RayEngine(sites_as_actors=True).run(run, [[plan]], lambda: None)

    assert lost.exists()
    kept = [row for row in run.kept(plan) or () if row[1].metric not in UNREPEATABLE]
    assert kept == [row for row in local if row[0] == plan.cell]


@pytest.mark.parametrize("mode", ["record-local", "record-distributed"])
def test_sites_apart_end_with_the_parameters_of_one_process_and_other_noise_does_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    run = study_run(root, tmp_path)
    plan = next(plan for plan in cells(run) if plan.cell.mode == mode)
    together = final_parameters(Bench(run.study, root, tmp_path), plan, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        bench = ApartBench(run.study, root, tmp_path, host="127.0.0.1", call=Hosts(pool).call)
        apart = final_parameters(bench, plan, monkeypatch)
        renamed = run.study.study.model_copy(update={"name": "other-noise"})
        bench.study = run.study.model_copy(update={"study": renamed})
        noisier = final_parameters(bench, plan, monkeypatch)

    assert np.array_equal(apart.parameters, together.parameters)
    assert not np.array_equal(noisier.parameters, together.parameters)
    assert (apart.epsilons, apart.rounds, apart.sum_error) == (together.epsilons, together.rounds, 0.0)
    assert (apart.bytes_up, apart.bytes_down) == (together.bytes_up, together.bytes_down)


def test_a_site_that_fails_ends_its_cell_with_its_own_message(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study_run(root, tmp_path)
    with ThreadPoolExecutor(3) as pool:
        hosts = Hosts(pool)

        def fails(_address: str) -> None:
            raise UserError("the disk of a site is full", remedy="empty it")

        monkeypatch.setattr("fedmvp.experiments.site_host.RECONNECT_SECONDS", 0.2)
        monkeypatch.setattr(hosts.sites[1], "take_part", fails)
        bench = ApartBench(run.study, root, tmp_path, host="127.0.0.1", call=hosts.call)
        with pytest.raises(UserError, match="the disk of a site is full"):
            bench.run(cells(run)[0])


@pytest.mark.timeout(300)
def test_a_worker_that_does_not_see_the_data_says_which_folder(root: Path, tmp_path: Path, two_workers: None) -> None:
    run = replace(study_run(root, tmp_path), root=tmp_path / "elsewhere")
    with pytest.raises(UserError, match="elsewhere does not exist on") as caught:
        RayEngine().run(run, [cells(run)], lambda: None)
    assert "same path on every node" in caught.value.remedy


def test_a_site_that_does_not_see_an_image_says_which(root: Path, tmp_path: Path) -> None:
    run = study_run(root, tmp_path)
    with ThreadPoolExecutor(3) as pool:
        hosts = Hosts(pool)
        bench = ApartBench(run.study, root, tmp_path, host="127.0.0.1", call=hosts.call)
        deal = bench.deal(3, 0)
        part = deal.sites[0]
        records = tuple(replace(record, path=tmp_path / "gone.png") for record in part.images.records[:1])
        moved = replace(part, images=replace(part.images, records=records))
        bench._deals[3, 0] = replace(deal, sites=(moved, *deal.sites[1:]))
        with pytest.raises(UserError, match=r"gone\.png does not exist on"):
            bench.run(cells(run)[0])


def test_a_worker_of_another_version_is_refused(root: Path, tmp_path: Path) -> None:
    run = study_run(root, tmp_path)
    host = CellHost(WorkerSetup(run.study, root, 1, sites_as_actors=False, version="0.0.1"))
    with pytest.raises(UserError, match=r"started with 0\.0\.1"):
        host.run(cells(run)[0])


def test_a_missing_ray_is_one_message_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="--engine ray needs the package ray") as caught:
        RayEngine()
    assert caught.value.remedy == 'pip install "fedmvp[ray]"'


def test_a_cluster_without_processors_is_refused_instead_of_waited_for(root: Path, tmp_path: Path) -> None:
    groups = [cells(study_run(root, tmp_path))]
    empty = SimpleNamespace(cluster_resources=lambda: {"memory": 1.0})
    with pytest.raises(UserError, match="offers a processor") as caught:
        RayEngine()._slots(empty, groups)
    assert caught.value.exit_code is ExitCode.COMPUTE


@pytest.mark.parametrize(
    ("processors", "workers", "apart", "slots"),
    [(8, 0, False, 8), (8, 3, False, 3), (2, 5, False, 2), (8, 0, True, 2), (2, 0, True, 1), (2, 2, True, 2)],
)
def test_cells_at_once_leave_processors_for_their_sites(
    root: Path, processors: int, workers: int, apart: bool, slots: int
) -> None:
    groups = [cells(study_run(root, root / "out"))]
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": float(processors)})
    assert RayEngine(workers=workers, sites_as_actors=apart)._slots(ray, groups) == slots


def test_sums_in_the_clear_have_no_sites_to_be_actors(root: Path, tmp_path: Path) -> None:
    run = study_run(root, tmp_path, secure_sum=False)
    with pytest.raises(UserError, match="no sites to be actors"):
        RayEngine(sites_as_actors=True).run(run, [cells(run)], lambda: None)


@pytest.mark.parametrize("option", [["--sites-as-actors"], ["--ray-address", "127.0.0.1:6379"]])
def test_options_of_a_cluster_are_refused_without_one(option: Sequence[str]) -> None:
    outcome = CliRunner().invoke(experiment, ["run", "STUDY.toml", *option])
    assert isinstance(outcome.exception, UserError)
    assert outcome.exception.remedy == "add --engine ray"


def test_the_manifest_of_the_documentation_mounts_the_data_read_only_in_every_pod() -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiments-cluster.md").read_text(encoding="utf-8")
    cluster_of = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    assert (cluster_of["kind"], cluster_of["spec"]["rayVersion"]) == ("RayCluster", version("ray"))
    assert f"rayproject/ray:{version('ray')}-" in page
    groups = [cluster_of["spec"]["headGroupSpec"], *cluster_of["spec"]["workerGroupSpecs"]]
    assert len(groups) == 2
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts["data"]["readOnly"]
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert next(volume for volume in pod["volumes"] if volume["name"] == "data")["persistentVolumeClaim"][
            "readOnly"
        ]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"} <= {e["name"] for e in container["env"]}


def test_a_users_error_keeps_its_remedy_on_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UserError("no", remedy="yes", exit_code=ExitCode.NETWORK)))
    assert (error.what, error.remedy, error.exit_code) == ("no", "yes", ExitCode.NETWORK)


def test_a_sites_keys_are_unpacked_for_their_owner_alone(tmp_path: Path) -> None:
    source = tmp_path / "site"
    (source / "study").mkdir(parents=True)
    (source / "identity.key").write_bytes(b"secret")
    (source / "identity.key").chmod(0o600)
    (source / "study" / "policy.toml").write_bytes(b"public")
    unpack_folder(pack_folder(source), tmp_path / "there")
    assert (tmp_path / "there" / "study" / "policy.toml").read_bytes() == b"public"
    assert stat.S_IMODE((tmp_path / "there" / "identity.key").stat().st_mode) == 0o600


def reports(*inputs: Sequence[int], total: Sequence[int], contributors: int) -> dict[str, SiteReport]:
    """Reports of one round, with these inputs and this published sum."""

    def report(vector: Sequence[int]) -> SiteReport:
        sums = RunningSums()
        sums.keep((1, 0), 1, np.array(vector, dtype=np.uint32))
        published: Any = SimpleNamespace(total=np.array(total, dtype=np.uint32), survivors=range(contributors))
        sums.compare((1, 0), published)
        sums.compare((1, 0), published)
        return SiteReport(1.0, np.zeros(2, dtype=np.float32), sums)

    return {f"site-{at}": report(vector) for at, vector in enumerate(inputs)}


@pytest.mark.parametrize(("total", "error"), [([4, 6], 0.0), ([4, 7], 1.0), ([1, 6], 3.0)])
def test_the_error_of_a_sum_is_its_distance_from_what_the_sites_put_in(total: list[int], error: float) -> None:
    assert sites_apart._sum_error(reports([2**32 - 1, 1], [5, 5], total=total, contributors=2)) == error


def test_a_cell_that_lost_a_site_in_some_round_has_no_result() -> None:
    study: Any = SimpleNamespace(policy=SimpleNamespace(study=SimpleNamespace(rounds=1, run_id="cell")))
    with pytest.raises(UserError, match="not every site"):
        sites_apart._outcome(study, reports([1], [2], [3], total=[3], contributors=2), sites_apart.ByteMeter())


def test_a_site_reads_packaged_images_where_it_keeps_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study_run(root, tmp_path)
    bench = Bench(run.study, root, tmp_path)
    deal = replace(bench.deal(3, 0), tests=())
    records = tuple(replace(r, path=tmp_path / "digits" / r.path.name) for r in deal.sites[0].images.records[:1])
    part = replace(deal.sites[0], images=replace(deal.sites[0].images, records=records))
    written: list[Path] = []
    monkeypatch.setattr("fedmvp.experiments.site_host.write_class_folders", written.append)
    packaged = run.study.model_copy(update={"data": run.study.data.model_copy(update={"folder": "packaged"})})
    task: Any = SimpleNamespace(study=packaged, deal=replace(deal, sites=(part,)), scratch=tmp_path)
    host = SiteHost()
    there = host._here(task)
    host.close()
    assert [record.path.parent for record in there.sites[0].images.records] == written
    assert written[0].parent != tmp_path
    other = SiteHost()
    assert other._here(SimpleNamespace(study=packaged, deal=deal, scratch=tmp_path)) is deal  # type: ignore[arg-type]
    assert len(written) == 1  # of a data set that trains beside the packaged one nothing is moved
