"""A benchmark's simulator as a robot: it asks a policy server over its socket and counts its successes.

    python -m cso_jax.runtime.simulated_robot --config=configs/quickstart.py --server=ws://127.0.0.1:8000
        [--episodes=20] [--realtime=true] [--blend=N] [--latency-ms=X] [--jitter-ms=X] [--drop=P] [--freeze=P]
        [--seed=N] [--token-file=FILE] [--out=FILE.jsonl] [--view[=PORT]] [--config.env.key=value ...]
    python -m cso_jax.runtime.simulated_robot --config=configs/X.py --serve=9000 [--schema=FILE] [--view[=PORT]]

Without --realtime the world waits for every answer, as in an evaluation: with the run's seed it starts from the same
initial states as the run's own evaluation. With it the control loop of a real robot runs at the policy's rate by the
clock, and the next chunk is asked for while the arm moves. --latency-ms and --jitter-ms delay each answer (the jitter
is uniform on top), --drop loses that share of the answers, --freeze shows that share of the observations a camera
image that is one decision old.

With --serve it is the other way round: it waits for a training computer (`config.env.name = "robot"`), lays the scenes
that it asks for, executes its actions, and says when a task is done. --schema=FILE writes what it says about itself.

--view shows either on a page of this machine, at port 8090 or that one: cameras, joints, chunks, successes.
"""

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cso_jax import config as configs
from cso_jax import envs, telemetry
from cso_jax.cli import fail, run_command
from cso_jax.envs.protocol import (
    PROPRIO,
    ChunkResult,
    Environment,
    EvalInit,
    InitState,
    Observation,
    RobotInterface,
)
from cso_jax.files import append_jsonl, atomic_write_text, expanded
from cso_jax.run import SEED_STRIDE
from cso_jax.runtime.client import ClientError, PolicyClient
from cso_jax.runtime.control import ControlError, ControlLoop, Report, Settings
from cso_jax.runtime.manifest import Entry, Limits, Manifest, Task
from cso_jax.runtime.observer import Observer
from cso_jax.runtime.robot_server import RobotServer
from cso_jax.runtime.schema import Commands, Schema
from cso_jax.runtime.view import PORT, View, ViewError
from cso_jax.statistics import wilson

USAGE = (
    "python -m cso_jax.runtime.simulated_robot --config=configs/X.py --server=ws://HOST:PORT [--episodes=N] "
    "[--realtime=true] [--latency-ms=X] ...; --help says more"
)
_OPTIONS = (
    "config", "server", "episodes", "realtime", "blend", "latency-ms", "jitter-ms", "drop", "freeze", "seed",
    "token-file", "out", "serve", "schema", "view",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """Between robot and server: seconds of delay, shares of answers that are lost and of images that stand still."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    drop: float = 0.0
    freeze: float = 0.0


class Link:
    """The way to the server and back, with a disturbance. `infer` is what a control loop asks."""

    def __init__(self, client: PolicyClient, disturbance: Disturbance, seed: int) -> None:
        self.dropped = self.frozen = 0
        self._client = client
        self._disturbance = disturbance
        self._random = np.random.default_rng(seed)
        self._images = [entry.name for entry in client.manifest.observation if entry.kind == "image"]
        self._last: dict[str, np.ndarray] = {}
        self._task = ""

    def begin(self, task: str) -> None:
        """Another episode."""
        self._client.reset()
        self._task = task
        self._last = {}

    def infer(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """A chunk `[T, A]`. Raises TimeoutError for a lost answer, and what the client raises."""
        shown = dict(observation)
        if self._last and self._random.random() < self._disturbance.freeze:
            shown |= self._last
            self.frozen += 1
        self._last = {name: np.array(observation[name]) for name in self._images}
        time.sleep(self._disturbance.latency_s + self._disturbance.jitter_s * self._random.random())
        actions = self._client.infer(shown, task=self._task).actions
        if self._random.random() < self._disturbance.drop:
            self.dropped += 1
            raise TimeoutError("the answer was lost (--drop)")
        return actions


class SimulatedArm:
    """One episode of an environment as a robot driver: a command is one simulator step. See `runtime.robot.Robot`."""

    def __init__(self, environment: Environment, init: EvalInit, interface: RobotInterface) -> None:
        first = environment.reset(init)
        self.success, self.steps = False, 0
        self.over = threading.Event()
        self._environment = environment
        self._rate_hz = interface.rate_hz or 20.0
        self._interface = interface
        self._seen: tuple[Observation, float] = (first.observation, time.monotonic())
        self._last = np.asarray(self.position(first.observation), np.float32)

    @property
    def rate_hz(self) -> float:
        return self._rate_hz

    def observe(self) -> tuple[Observation, float]:
        return self._seen

    def command(self, action: np.ndarray) -> None:
        """Execute `[A]` for one step."""
        self.execute(action[None])

    def execute(self, actions: np.ndarray) -> None:
        """Execute `[n, A]`, in the units of the policy's manifest, unless the episode is over."""
        if self.over.is_set():
            return
        self._last = np.asarray(actions[-1], np.float32)
        result = self._environment.step_chunk(environment_actions(actions, self._interface))
        self._seen = (result.observation, time.monotonic())
        self.success |= result.success
        self.steps += result.steps
        if result.done:
            self.over.set()

    def position(self, seen: Mapping[str, np.ndarray]) -> np.ndarray:
        """The command that keeps it where it is: the measured joints and gripper, where it is a jointed arm."""
        return np.asarray(seen[PROPRIO], np.float64) if self._interface.limits else np.zeros(len(self._interface.names))

    def hold(self) -> None:
        """Stay: joint positions are commanded again; moves become none, with the gripper, last, as it was."""
        stay = self._last.copy()
        if not self._interface.limits:
            stay[:-1] = 0.0
        self.command(stay)

    def stop(self) -> None:
        self.over.set()


def environment_actions(actions: np.ndarray, interface: RobotInterface) -> np.ndarray:
    """Actions `[n, A]` in units as what an environment executes, float32: the inverse of what the export did."""
    if not interface.scaled:
        return np.asarray(actions, np.float32)
    low, high = np.asarray(interface.low), np.asarray(interface.high)
    return ((np.asarray(actions, np.float64) - low) / (high - low) * 2 - 1).astype(np.float32)


class Watched:
    """An environment of which an observer is told: see `envs.protocol.Environment`. Its time is that of its steps: the
    world waits for its policy."""

    def __init__(self, environment: Environment, view: Observer, settings: Mapping[str, Any]) -> None:
        self._environment, self._view, self._settings = environment, view, settings
        self._interface = envs.robot_interface(settings)
        self._period = 1.0 / (self._interface.rate_hz or 20.0)
        self._now = 0.0

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        result = self._environment.reset(init, record=record)
        self._view.episode(envs.sentence(self._settings, init.task))
        self._view.observe(result.observation, self._now)
        return result

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        result = self._environment.step_chunk(actions)
        for number, action in enumerate(robot_actions(actions[: result.steps], self._interface)):
            self._view.command(action, self._now + number * self._period, seam=number == 0)
        self._now += result.steps * self._period
        self._view.observe(result.observation, self._now)
        if result.done:
            self._view.outcome(result.success)
        return result

    def close(self) -> None:
        self._environment.close()


def robot_actions(actions: np.ndarray, interface: RobotInterface) -> np.ndarray:
    """An environment's actions `[n, A]` in the units of its robot: what `environment_actions` undoes."""
    if not interface.scaled:
        return actions
    low, high = np.asarray(interface.low), np.asarray(interface.high)
    return low + (np.clip(actions, -1.0, 1.0) + 1.0) / 2.0 * (high - low)


def in_lockstep(arm: SimulatedArm, link: Link, horizon: int, view: Observer) -> None:
    """The world waits for each answer. Where one is lost the rest of the chunk before is executed, then it holds."""
    chunk: np.ndarray = np.zeros((0, 0), np.float32)
    while not arm.over.is_set():
        try:
            asked = time.monotonic()
            chunk = link.infer(arm.observe()[0])
            view.answer(time.monotonic() - asked)
        except TimeoutError:
            chunk = chunk[horizon:]
        if len(chunk):
            arm.execute(chunk[:horizon])
        else:
            arm.hold()


def in_real_time(arm: SimulatedArm, link: Link, client: PolicyClient, settings: Settings, view: Observer) -> Report:
    """The control loop of a real robot, by the clock."""
    loop = ControlLoop(arm, client.manifest, link.infer, position_of=arm.position, settings=settings, view=view)
    report = loop.run(stop=arm.over)
    view.observe(*arm.observe())
    view.outcome(arm.success)
    return report


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        telemetry.show(__doc__ or "")
        return 0
    try:
        options, config = _read(arguments)
        if "serve" in options:
            return _serve(config, options)
        client = PolicyClient(options["server"], None, token=_token(options), robot="simulated")
        with client, _watching(options, client.manifest, config.env.to_dict()) as view:
            return _episodes(config, client, options, view)
    except (configs.ConfigError, ClientError, ControlError, ViewError) as error:
        return fail(error)


def _read(arguments: list[str]) -> tuple[dict[str, str], Any]:
    options, overrides = configs.split_arguments(_with_port(arguments))
    unknown = sorted(options.keys() - set(_OPTIONS))
    if unknown or "config" not in options or ("server" in options) == ("serve" in options):
        raise configs.ConfigError((f"no option --{unknown[0]}; " if unknown else "") + f"usage: {USAGE}")
    for name in ("episodes", "seed", "blend", "serve", "view"):
        if not options.get(name, "0").isdecimal():
            raise configs.ConfigError(f"--{name} is a whole number; got {options[name]!r}")
    for name, high in (("latency-ms", 1e5), ("jitter-ms", 1e5), ("drop", 1.0), ("freeze", 1.0)):
        try:
            within = 0.0 <= float(options.get(name, 0)) <= high
        except ValueError:
            within = False
        if not within:
            raise configs.ConfigError(f"--{name} is a number from 0 to {high:g}; got {options[name]!r}")
    if options.get("realtime", "false") not in ("true", "false"):
        raise configs.ConfigError(f"--realtime is true or false; got {options['realtime']!r}")
    return options, configs.load(options["config"], overrides)


def _with_port(arguments: list[str]) -> list[str]:
    """`--view` by itself names the usual port: the other options all have a value."""
    after = [*arguments[1:], "--"]
    return [
        f"--view={PORT}" if one == "--view" and following.startswith("--") else one
        for one, following in zip(arguments, after, strict=True)
    ]


@contextlib.contextmanager
def _watching(options: Mapping[str, str], of: Manifest | Schema, settings: Mapping[str, Any]) -> Iterator[Observer]:
    """What --view asks for, or an observer that does nothing. Raises ViewError."""
    if "view" not in options:
        yield Observer()
        return
    measured = (lambda seen: seen[PROPRIO]) if envs.robot_interface(settings).limits else None
    with View(of, port=int(options["view"]), position_of=measured) as view:
        telemetry.log(f"watch it at {view.address}")
        yield view


def _token(options: Mapping[str, str]) -> str:
    path = options.get("token-file", "")
    try:
        return expanded(path).read_text("utf-8").strip() if path else ""
    except OSError as error:
        raise configs.ConfigError(f"--token-file={path} cannot be read: {error.strerror}") from None


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """What a benchmark's simulator says about itself as a robot; an action that is not scaled is its own unit."""
    spec, interface = envs.spec(settings), envs.robot_interface(settings)
    size = spec.action_dim
    return Schema(
        name=f"simulated {settings['name']}",
        observation=(
            *(Entry(name, "lowdim", (length,), "float32") for name, length in spec.lowdim.items()),
            *(Entry(name, "image", shape, "uint8", interface.orientation) for name, shape in spec.images.items()),
        ),
        commands=Commands(
            names=interface.names,
            low=interface.low if interface.scaled else (-1.0,) * size,
            high=interface.high if interface.scaled else (1.0,) * size,
            units=interface.units,
            rate_hz=interface.rate_hz or 20.0,
        ),
        tasks=tuple(Task(task, envs.sentence(settings, task)) for task in envs.task_names(settings)),
        limits=None if interface.limits is None else Limits(**vars(interface.limits)),
        reproducible=True,
    )


def _serve(config: Any, options: Mapping[str, str]) -> int:
    """Until Ctrl-C or SIGTERM."""
    settings = config.env.to_dict()
    schema = schema_of(settings)
    if "schema" in options:
        atomic_write_text(expanded(options["schema"]), schema.to_json())
    envs.require_files(settings)
    (environment,) = envs.make_environments(settings, 1)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with (
            _watching(options, schema, settings) as view,
            RobotServer(
                schema, Watched(environment, view, settings), port=int(options["serve"]), token=_token(options)
            ) as server,
        ):
            telemetry.log(f"{schema.name} waits at ws://127.0.0.1:{server.port}")
            stop.wait()
    except OSError as error:
        raise configs.ConfigError(
            f"--serve={options['serve']}: {error.strerror or error}; choose another port"
        ) from None
    return 0


def _episodes(config: Any, client: PolicyClient, options: Mapping[str, str], view: Observer) -> int:
    settings = config.env.to_dict()
    interface, manifest = envs.robot_interface(settings), client.manifest
    _check(settings, manifest)
    seed, realtime = int(options.get("seed", 0)), options.get("realtime") == "true"
    disturbance = Disturbance(
        float(options.get("latency-ms", 0)) / 1000, float(options.get("jitter-ms", 0)) / 1000,
        float(options.get("drop", 0)), float(options.get("freeze", 0)),
    )  # fmt: skip
    link = Link(client, disturbance, seed)
    inits = list(_inits(envs.task_names(settings), int(options.get("episodes", 20)), seed))
    history = 1 if realtime else manifest.history  # the control loop keeps its own
    (environment,) = envs.make_environments(settings | {"history": history}, 1)
    if not realtime:
        environment = Watched(environment, view, settings)
    view.watch("link", lambda: {"answers lost": link.dropped, "images frozen": link.frozen})
    rows: list[dict[str, Any]] = []
    reports: list[Report] = []
    bar: telemetry.Progress[None]
    with telemetry.progress(len(inits), "robot", unit="episode") as bar:
        for init in inits:
            arm = SimulatedArm(environment, init, interface)
            link.begin(init.task)
            if realtime:
                view.episode(envs.sentence(settings, init.task))
                loop_settings = Settings(blend=int(options.get("blend", 0)))
                reports.append(in_real_time(arm, link, client, loop_settings, view))
            else:
                in_lockstep(arm, link, manifest.action.execution_horizon, view)
            rows.append(
                {"stage": "robot", "task": init.task, "init": init.name, "seed": seed, "success": arm.success,
                 "steps": arm.steps}
            )  # fmt: skip
            if options.get("out"):
                append_jsonl(expanded(options["out"]), rows[-1:], sync=False)
            bar.update()
            bar.set_postfix({"success": sum(row["success"] for row in rows) / len(rows)})
    environment.close()
    _summary(rows, reports, link)
    return 0


def _check(settings: Mapping[str, Any], manifest: Any) -> None:
    """Raises ConfigError where the served policy is not for this robot."""
    spec = envs.spec(settings)
    ours = {name: (size,) for name, size in spec.lowdim.items()} | dict(spec.images)
    theirs = {entry.name: entry.shape for entry in manifest.observation}
    if ours != theirs or spec.action_dim != manifest.action.dim:
        raise configs.ConfigError(
            f"the policy {manifest.name!r} reads {theirs} and commands {manifest.action.dim} numbers, this robot gives "
            f"{ours} and takes {spec.action_dim}: serve a policy of this config"
        )
    known = {task.name for task in manifest.tasks}
    strange = [task for task in envs.task_names(settings) if task not in known]
    if strange:
        raise configs.ConfigError(f"the policy {manifest.name!r} has no task {strange[0]!r}; it has {sorted(known)}")


def _inits(tasks: tuple[str, ...], episodes: int, seed: int) -> Iterator[EvalInit]:
    for number in range(episodes):
        for task in tasks:
            yield EvalInit(task, seed * SEED_STRIDE + number)


def _summary(rows: list[dict[str, Any]], reports: list[Report], link: Link) -> None:
    for task in dict.fromkeys(row["task"] for row in rows):
        wins = [row["success"] for row in rows if row["task"] == task]
        telemetry.show(f"{task:32s} {sum(wins)} of {len(wins)}")
    wins = sum(row["success"] for row in rows)
    low, high = wilson(wins, len(rows))
    telemetry.show(
        f"success {100 * wins / len(rows):.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}, n = {len(rows)}; "
        f"{link.dropped} answers lost, {link.frozen} images frozen"
    )
    if reports:
        telemetry.show(_control(reports))


def _control(reports: list[Report]) -> str:
    def total(name: str) -> int:
        return sum(getattr(one, name) for one in reports)

    def milliseconds(name: str) -> str:
        """The median episode's median, and the worst episode's 99 %."""
        middle = np.median([getattr(one, f"{name}_p50") for one in reports])
        return (
            f"p50 {1000 * middle:.2f} ms, worst p99 {1000 * max(getattr(one, f'{name}_p99') for one in reports):.2f} ms"
        )

    return (
        f"control: {total('commands')} commands, {total('stalls')} periods without one, {total('skipped')} skipped; "
        f"late {milliseconds('late')}; an answer takes {milliseconds('latency')}; {total('seams')} seams, the largest "
        f"step {max(one.seam_largest for one in reports):.2f}"
    )


if __name__ == "__main__":
    run_command(main)
