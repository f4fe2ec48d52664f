"""Which episodes to run: the sampling rules of Algorithm 1, over any `run_wave(requests) -> records`.

- N-strikes (R-SFT): `n_strikes` keeps successes.
- Dynamic rejection (SPO): `collect_groups` keeps groups with both outcomes.
- Neither: `collect_every_group` keeps what comes, for baselines that are not the group's mean.

A wave is one list of requests that run together. All rules finish every wave they begin, so an episode's length has no
say in whether it is used, and all draw initial states by counting, so a resumed run draws what it would have.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from cso_jax.envs.protocol import TrainInit, require_train


class HasSuccess(Protocol):
    """What these rules need to know of an episode record."""

    @property
    def success(self) -> bool: ...


Request = TypeVar("Request")
Record = TypeVar("Record", bound=HasSuccess)

MakeRequest = Callable[[TrainInit, int], Request]
"""`(init, attempt) -> request`; the sampling key must be a function of these two alone."""


class Outcome(NamedTuple):
    """What came of one group: whether its first episodes, as many as every group runs, were successes."""

    task: str
    first: tuple[bool, ...]
    mixed: bool  # both outcomes among all that ran


@dataclasses.dataclass
class GroupBatch(Generic[Record]):
    """The outcome of `collect_groups`.

    `kept[i]` are the `group_size` records of one informative group, in attempt order. `outcomes` are of every group
    that was drawn, kept or not: `all_success` and `all_failure` of them were rejected and `surplus` informative ones
    not needed. `episodes` ran. `exhausted` is true when the budget ended before enough informative groups were found.
    """

    kept: list[list[Record]]
    outcomes: list[Outcome]
    surplus: int
    episodes: int
    exhausted: bool

    @property
    def drawn(self) -> int:
        return len(self.outcomes)

    @property
    def all_success(self) -> int:
        return sum(not group.mixed and group.first[0] for group in self.outcomes)

    @property
    def all_failure(self) -> int:
        return sum(not group.mixed and not group.first[0] for group in self.outcomes)

    @property
    def success_rate(self) -> float:
        """Of the episodes that every group runs: which groups run more depends on how these ended."""
        ends = [success for group in self.outcomes for success in group.first]
        return sum(ends) / len(ends)

    @property
    def kept_count(self) -> int:
        return len(self.kept)

    @property
    def informative_rate(self) -> float:
        """The share of drawn groups with both outcomes in them: how much signal there is to learn from."""
        return (self.kept_count + self.surplus) / self.drawn if self.drawn else 0.0


def collect_groups(
    draw_init: Callable[[int], TrainInit],
    make_request: Callable[[TrainInit, int], Request],
    run_wave: Callable[[Sequence[Request]], Sequence[Record]],
    *,
    groups: int,
    group_size: int,
    wave_groups: int,
    max_groups: int,
    probe: int = 0,
) -> GroupBatch[Record]:
    """Dynamic rejection: draw initial states until `groups` of them gave both successes and failures.

    `draw_init(k)` is the k-th initial state of this collection, k = 0, 1, ... The first `groups` informative groups in
    draw order are kept. Stops after `max_groups` draws with what there is.

    With `probe` that many episodes of each group run first, and a group whose first ones all end alike ends there
    (0: all run). Nothing but outcomes decides that, so no gradient is bent by it: whatever the outcomes r of a group
    are, k successes of N from a state where success has probability p, the expectation of sum_i (r_i - mean r) grad
    log pi(episode i) at the policy that acted is grad p times k (N - k) / (N p (1 - p)), for outcomes alone say nothing
    of an episode beyond its own. Groups that go on count as before; of the others those are missing that would have
    been mixed later, from states that are nearly mastered or nearly hopeless.

    Raises ValueError for counts that cannot work, TypeError for an evaluation state.
    """
    _require_positive(groups=groups, wave_groups=wave_groups)
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, since one episode has no advantage; got {group_size}")
    if max_groups < groups:
        raise ValueError(f"max_groups must be at least groups ({groups}), got {max_groups}")
    if probe and not 2 <= probe <= group_size:
        raise ValueError(f"probe must be 0 or between 2 and group_size ({group_size}), got {probe}")
    first = probe or group_size
    informative: list[list[Record]] = []
    outcomes: list[Outcome] = []
    surplus = episodes = 0
    while len(informative) < groups and len(outcomes) < max_groups:
        wave = range(len(outcomes), min(len(outcomes) + wave_groups, max_groups))
        inits = [require_train(draw_init(k)) for k in wave]
        begun = _attempts(make_request, run_wave, inits, range(first))
        ended = [Outcome(init.task, _successes(group), _mixed(group)) for init, group in zip(inits, begun, strict=True)]
        mixed = [number for number, outcome in enumerate(ended) if outcome.mixed]
        kept = mixed[: groups - len(informative)]
        rest = _attempts(make_request, run_wave, [inits[number] for number in kept], range(first, group_size))
        informative.extend(begun[number] + more for number, more in zip(kept, rest, strict=True))
        outcomes.extend(ended)
        surplus += len(mixed) - len(kept)
        episodes += len(inits) * first + len(kept) * (group_size - first)
    return GroupBatch(informative, outcomes, surplus, episodes, exhausted=len(informative) < groups)


def collect_every_group(
    draw_init: Callable[[int], TrainInit],
    make_request: Callable[[TrainInit, int], Request],
    run_wave: Callable[[Sequence[Request]], Sequence[Record]],
    *,
    groups: int,
    group_size: int,
    wave_groups: int,
) -> GroupBatch[Record]:
    """The first `groups` groups, whatever came of them. Raises as `collect_groups` does."""
    _require_positive(groups=groups, group_size=group_size, wave_groups=wave_groups)
    kept: list[list[Record]] = []
    outcomes: list[Outcome] = []
    for begin in range(0, groups, wave_groups):
        inits = [require_train(draw_init(k)) for k in range(begin, min(begin + wave_groups, groups))]
        found = _attempts(make_request, run_wave, inits, range(group_size))
        kept.extend(found)
        outcomes.extend(
            Outcome(init.task, _successes(group), _mixed(group)) for init, group in zip(inits, found, strict=True)
        )
    return GroupBatch(kept, outcomes, surplus=0, episodes=groups * group_size, exhausted=False)


def _attempts(
    make_request: Callable[[TrainInit, int], Request],
    run_wave: Callable[[Sequence[Request]], Sequence[Record]],
    inits: Sequence[TrainInit],
    attempts: range,
) -> list[list[Record]]:
    """The records of these attempts from each initial state, run together."""
    if not inits or not attempts:
        return [[] for _ in inits]
    records = _run(run_wave, [make_request(init, attempt) for init in inits for attempt in attempts])
    return list(_split(records, len(attempts)))


def _successes(group: Sequence[HasSuccess]) -> tuple[bool, ...]:
    return tuple(bool(record.success) for record in group)


def _mixed(group: Sequence[HasSuccess]) -> bool:
    return len(set(_successes(group))) == 2


@dataclasses.dataclass(frozen=True)
class TaskCursor:
    """How far one task's collection has come. `successes` counts kept episodes, `surplus` those beyond the target.

    `states` were drawn and `rollouts` run from them; `struck_out` of the states gave no success and were discarded.
    `open` holds (state, attempts made) of those that have neither succeeded nor struck out yet.
    """

    states: int = 0
    rollouts: int = 0
    successes: int = 0
    surplus: int = 0
    struck_out: int = 0
    open: tuple[tuple[int, int], ...] = ()

    @classmethod
    def restored(cls, fields: Mapping[str, Any]) -> "TaskCursor":
        """From `dataclasses.asdict` and through JSON, which has lists only."""
        return cls(**{**fields, "open": tuple((state, made) for state, made in fields.get("open", ()))})


# The paper describes R-SFT's collection three times, and no two descriptions agree. Each is a rule: how many attempts
# a state gets at once, and how many in all; between its turns a state without a success stays open.
#
#   algorithm      Algorithm 1: every state gets N_strikes attempts, all successes are kept.
#   until_success  Appendix E.2, "up to 10 rollouts": one attempt after the other until the first success.
#   new_state      Appendix G: one attempt; whatever comes of it, the next one is from a new state.
STRIKE_RULES = ("algorithm", "until_success", "new_state")


def attempts_of(rule: str, strikes: int) -> tuple[int, int]:
    """(attempts of one turn, attempts in all) that a state gets. Raises ValueError for an unknown rule."""
    if rule not in STRIKE_RULES:
        raise ValueError(f"rule must be one of {', '.join(STRIKE_RULES)}; got {rule!r}")
    return {"algorithm": (strikes, strikes), "until_success": (1, strikes), "new_state": (1, 1)}[rule]


def n_strikes(
    draw_init: Callable[[str, int], TrainInit],
    make_request: Callable[[TrainInit, int], Request],
    run_wave: Callable[[Sequence[Request]], Sequence[Record]],
    *,
    tasks: Sequence[str],
    target: int,
    strikes: int,
    wave: int,
    max_rollouts_per_task: int,
    rule: str = "algorithm",
    initial: Mapping[str, TaskCursor] | None = None,
    on_wave: Callable[[list[Record], dict[str, TaskCursor]], None] | None = None,
) -> dict[str, TaskCursor]:
    """R-SFT's collection: attempts from each initial state as `rule` says (see `STRIKE_RULES`), successes are kept.

    Ends for a task at exactly `target` kept successes, or when another state might exceed `max_rollouts_per_task`.
    `draw_init(task, k)` is the task's k-th initial state. A wave holds about `wave` episodes, spread over the
    unfinished tasks, those with fewest rollouts first. Which episodes are kept does not depend on `wave`: no state is
    begun before it is certain that the ones begun earlier cannot reach the target, nor use up the rollouts.

    After each wave `on_wave(new successes, cursors)` is called, successes in task, state, attempt order. Storing both
    and passing the cursors as `initial` later continues as if there had been no break. Returns the final cursor of
    every task, also of those without any success.

    Raises ValueError for counts that cannot work, an unknown rule or duplicate tasks, TypeError for an evaluation
    state.
    """
    _require_positive(target=target, strikes=strikes, wave=wave, max_rollouts_per_task=max_rollouts_per_task)
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"tasks must be distinct, got {list(tasks)}")
    turn, limit = attempts_of(rule, strikes)
    if max_rollouts_per_task < limit:
        raise ValueError(f"max_rollouts_per_task ({max_rollouts_per_task}) must allow one state of {limit} rollouts")
    cursors = {task: (initial or {}).get(task, TaskCursor()) for task in tasks}
    while plan := _plan_wave(cursors, target, turn, limit, wave, max_rollouts_per_task):
        drawn = [(task, state, made, _draw(draw_init, task, state)) for task, state, made in plan]
        records = _run(run_wave, [make_request(init, made + n) for _, _, made, init in drawn for n in range(turn)])
        kept: list[Record] = []
        for (task, state, made, _), attempts in zip(drawn, _split(records, turn), strict=True):
            cursors[task], new = _score_turn(cursors[task], state, made, attempts, target, limit)
            kept.extend(new)
        if on_wave is not None:
            on_wave(kept, dict(cursors))
    return cursors


def _plan_wave(
    cursors: Mapping[str, TaskCursor], target: int, turn: int, limit: int, wave: int, max_rollouts: int
) -> list[tuple[str, int, int]]:
    """(task, state number, attempts made) of each turn of the next wave; empty when every task has ended.

    A task may run side by side only as many states as it would need if every rollout succeeded.
    """
    ready: dict[str, list[tuple[int, int]]] = {}
    for task, cursor in cursors.items():
        needed = -(-(target - cursor.successes) // turn) - len(cursor.open)
        promised = sum(limit - made for _, made in cursor.open)
        affordable = (max_rollouts - cursor.rollouts - promised) // limit
        new = range(cursor.states, cursor.states + max(0, min(needed, affordable)))
        if cursor.open or new:
            ready[task] = [*cursor.open, *((state, 0) for state in new)]
    free = max(1, wave // turn)
    taken = dict.fromkeys(ready, 0)
    order = sorted(ready, key=lambda task: cursors[task].rollouts)
    while free > 0 and order:
        for task in order[:free]:
            taken[task] += 1
        free -= min(free, len(order))
        order = [task for task in order if taken[task] < len(ready[task])]
    return [(task, state, made) for task in taken for state, made in ready[task][: taken[task]]]


def _score_turn(
    cursor: TaskCursor, state: int, made: int, attempts: Sequence[Record], target: int, limit: int
) -> tuple[TaskCursor, list[Record]]:
    won = [record for record in attempts if record.success]
    kept = won[: target - cursor.successes]
    made += len(attempts)
    waiting = tuple(entry for entry in cursor.open if entry[0] != state)
    struck_out = not won and made >= limit
    if not won and not struck_out:
        waiting = tuple(sorted([*waiting, (state, made)]))
    advanced = TaskCursor(
        states=max(cursor.states, state + 1),
        rollouts=cursor.rollouts + len(attempts),
        successes=cursor.successes + len(kept),
        surplus=cursor.surplus + len(won) - len(kept),
        struck_out=cursor.struck_out + struck_out,
        open=waiting,
    )
    return advanced, kept


def _draw(draw_init: Callable[[str, int], TrainInit], task: str, k: int) -> TrainInit:
    init = require_train(draw_init(task, k))
    if init.task != task:
        raise ValueError(f"asked for an initial state of {task}, got {init.name}")
    return init


def _run(run_wave: Callable[[Sequence[Request]], Sequence[Record]], requests: list[Request]) -> Sequence[Record]:
    records = run_wave(requests)
    if len(records) != len(requests):
        raise ValueError(f"a wave of {len(requests)} requests gave {len(records)} records")
    return records


def _split(records: Sequence[Record], size: int) -> Iterable[list[Record]]:
    return (list(records[start : start + size]) for start in range(0, len(records), size))


def _require_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
