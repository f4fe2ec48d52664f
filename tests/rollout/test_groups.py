"""Dynamic rejection and N-strikes over scripted outcomes, expectations worked out by hand; the fake's demos."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from cso_jax.envs import fake
from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.experts.fake import collect_demo
from cso_jax.rollout.groups import STRIKE_RULES, TaskCursor, collect_groups, n_strikes


@dataclasses.dataclass
class Outcome:
    task: str
    state: int
    attempt: int
    success: bool


class Script:
    """Outcomes by task: one string per initial state, '1' for a success; records the sizes of the waves."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes
        self.waves = []
        self.attempts = []

    def draw(self, task, k):
        return TrainInit(task, k)

    def request(self, init, attempt):
        return init, attempt

    def run(self, requests):
        self.waves.append([(init.task, init.index) for init, attempt in requests if attempt == 0])
        self.attempts.append([(init.index, attempt) for init, attempt in requests])
        return [
            Outcome(init.task, init.index, attempt, self.outcomes[init.task][init.index][attempt] == "1")
            for init, attempt in requests
        ]


def groups_of(script, **options):
    return collect_groups(lambda k: script.draw("t", k), script.request, script.run, **options)


def test_dynamic_rejection_keeps_the_first_informative_groups_of_whole_waves():
    script = Script(t=["00", "10", "11", "01", "10", "01", "11"])
    batch = groups_of(script, groups=2, group_size=2, wave_groups=3, max_groups=7)
    # Wave 1 (states 0-2) has one informative group, wave 2 (states 3-5) three: one too many twice over.
    assert script.waves == [[("t", 0), ("t", 1), ("t", 2)], [("t", 3), ("t", 4), ("t", 5)]]
    assert [[(r.state, r.attempt) for r in group] for group in batch.kept] == [[(1, 0), (1, 1)], [(3, 0), (3, 1)]]
    assert (batch.drawn, batch.kept_count, batch.all_success, batch.all_failure, batch.surplus) == (6, 2, 1, 1, 2)
    assert batch.success_rate == pytest.approx(6 / 12)
    assert batch.informative_rate == pytest.approx(4 / 6)
    assert not batch.exhausted


def test_dynamic_rejection_reports_an_exhausted_budget():
    script = Script(t=["000", "111", "010", "000", "111"])
    batch = groups_of(script, groups=2, group_size=3, wave_groups=4, max_groups=5)
    assert [len(wave) for wave in script.waves] == [4, 1]
    assert batch.exhausted
    assert (batch.drawn, batch.kept_count, batch.all_success, batch.all_failure, batch.surplus) == (5, 1, 2, 2, 0)
    assert batch.success_rate == pytest.approx(7 / 15)


def test_dynamic_rejection_with_no_signal_at_all():
    batch = groups_of(Script(t=["00"] * 4), groups=1, group_size=2, wave_groups=2, max_groups=4)
    assert batch.kept == [] and batch.exhausted and batch.success_rate == 0 and batch.all_failure == 4


def test_a_group_whose_first_episodes_end_alike_ends_with_them():
    # By hand, two episodes first: states 1, 3, 4 and 6 are mixed by then. 0 would have been mixed by its third.
    script = Script(t=["110", "101", "000", "011", "100", "111", "011"])
    batch = groups_of(script, groups=3, group_size=3, wave_groups=4, max_groups=7, probe=2)
    assert script.attempts == [
        [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)], [(1, 2), (3, 2)],
        [(4, 0), (4, 1), (5, 0), (5, 1), (6, 0), (6, 1)], [(4, 2)],
    ]  # fmt: skip
    assert [[(r.state, r.attempt) for r in group] for group in batch.kept] == [
        [(state, attempt) for attempt in range(3)] for state in (1, 3, 4)
    ]
    assert (batch.drawn, batch.all_success, batch.all_failure, batch.surplus) == (7, 2, 1, 1)
    assert batch.episodes == 17
    assert batch.success_rate == pytest.approx(8 / 14), "of the first two of each group: those that go on are chosen"
    assert not batch.exhausted


@pytest.mark.parametrize("probe", [0, 2])
def test_when_a_group_ends_does_not_turn_the_gradient(probe):
    # One of three actions is drawn, each with a chance of success of its own. All groups of three, worked out exactly.
    policy, chances = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.5, 0.1])
    gradient = policy * (chances - policy @ chances)  # of the chance of success, for the logits
    found = np.zeros(3)
    for actions in itertools.product(range(3), repeat=3):
        for bits in itertools.product("01", repeat=3):
            script = Script(t=["".join(bits)])
            batch = groups_of(script, groups=1, group_size=3, wave_groups=1, max_groups=1, probe=probe)
            wins = np.array([bit == "1" for bit in bits])
            chance = np.prod(policy[list(actions)] * np.where(wins, chances[list(actions)], 1 - chances[list(actions)]))
            for group in batch.kept:
                advantages = wins - np.mean([record.success for record in group])
                found += chance * advantages @ (np.eye(3)[list(actions)] - policy)
    assert found / gradient == pytest.approx(np.full(3, found[0] / gradient[0])) and found[0] / gradient[0] > 0


@pytest.mark.parametrize(
    "wrong",
    [{"probe": 1}, {"probe": 3}, {"group_size": 1}, {"groups": 0}, {"wave_groups": 0}, {"max_groups": 1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_dynamic_rejection_refuses_impossible_counts(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        groups_of(Script(t=[]), **{"groups": 2, "group_size": 2, "wave_groups": 2, "max_groups": 2, **wrong})


def test_evaluation_states_are_refused():
    script = Script(t=["10"])
    with pytest.raises(TypeError, match="train initial states only"):
        collect_groups(
            lambda k: EvalInit("t", k), script.request, script.run, groups=1, group_size=2, wave_groups=1, max_groups=1
        )
    with pytest.raises(TypeError, match="train initial states only"):
        strikes_of(script, tasks=["t"], draw=EvalInit)
    assert script.waves == []


TWO_TASKS = {
    # Three of the 4 that easy needs come from state 0, state 1 is discarded, state 2 gives two, one of them surplus.
    "easy": ["111", "000", "101", "111"],
    "hard": ["000", "010", "000", "000"],
    "never": ["000"] * 4,
}


def strikes_of(script, *, draw=None, **options):
    options = {"target": 4, "strikes": 3, "wave": 6, "max_rollouts_per_task": 12, **options}
    return n_strikes(draw or script.draw, script.request, script.run, **options)


def test_n_strikes_by_hand():
    script, waves = Script(**TWO_TASKS), []
    counts = strikes_of(
        script, tasks=list(TWO_TASKS), wave=9, on_wave=lambda new, cursors: waves.append((new, cursors))
    )
    assert counts == {
        "easy": TaskCursor(states=3, rollouts=9, successes=4, surplus=1, struck_out=1),
        "hard": TaskCursor(states=4, rollouts=12, successes=1, surplus=0, struck_out=3),
        "never": TaskCursor(states=4, rollouts=12, successes=0, surplus=0, struck_out=4),
    }
    assert script.waves == [
        [("easy", 0), ("hard", 0), ("never", 0)],
        [("easy", 1), ("hard", 1), ("never", 1)],
        [("easy", 2), ("hard", 2), ("never", 2)],
        [("hard", 3), ("never", 3)],
    ]
    kept = [(record.task, record.state, record.attempt) for new, _ in waves for record in new]
    assert kept == [("easy", 0, 0), ("easy", 0, 1), ("easy", 0, 2), ("hard", 1, 1), ("easy", 2, 0)]
    assert waves[-1][1] == counts


def test_a_wave_runs_no_state_that_may_not_be_needed():
    script = Script(t=["110", "111", "111"])
    # Four successes need two states even if every rollout succeeds, so these two may run together, a third may not.
    counts = strikes_of(script, tasks=["t"], wave=300)
    assert script.waves == [[("t", 0), ("t", 1)]]
    assert counts["t"] == TaskCursor(states=2, rollouts=6, successes=4, surplus=1)


# Per rule: (state, attempt) of what is kept of each task, and the rollouts and states that it takes.
#   until_success goes on from a failure at the same state, up to three times; new_state never does.
KEPT = {
    "algorithm": (
        {"easy": [(0, 0), (0, 1), (0, 2), (2, 0)], "hard": [(1, 1)], "never": []},
        {"easy": (9, 3), "hard": (12, 4), "never": (12, 4)},
    ),
    "until_success": (
        {"easy": [(0, 0), (2, 0), (3, 0), (4, 1)], "hard": [(1, 1)], "never": []},
        {"easy": (8, 5), "hard": (11, 4), "never": (12, 4)},
    ),
    "new_state": (
        {"easy": [(0, 0), (2, 0), (3, 0), (5, 0)], "hard": [], "never": []},
        {"easy": (6, 6), "hard": (12, 12), "never": (12, 12)},
    ),
}
MORE_STATES = {task: rows + ["000"] * 8 for task, rows in TWO_TASKS.items()} | {
    "easy": [*TWO_TASKS["easy"], "010", "100"]
}


def collected(rule, **options):
    kept = []
    script = Script(**MORE_STATES)
    counts = strikes_of(script, rule=rule, tasks=list(MORE_STATES), on_wave=lambda new, _: kept.extend(new), **options)
    return counts, {
        task: sorted((record.state, record.attempt) for record in kept if record.task == task) for task in MORE_STATES
    }


@pytest.mark.parametrize("wave", [1, 3, 6, 7, 100])
@pytest.mark.parametrize("rule", STRIKE_RULES)
def test_what_each_rule_keeps_at_any_wave_size(rule, wave):
    counts, kept = collected(rule, wave=wave)
    wanted, cost = KEPT[rule]
    assert kept == wanted
    assert {task: (cursor.rollouts, cursor.states) for task, cursor in counts.items()} == cost
    assert all(cursor.open == () for cursor in counts.values())


def test_until_success_spends_no_state_before_it_is_needed():
    # Two successes are wanted: two states at most run side by side, and the second one has three attempts.
    script = Script(t=["100", "001", "111"])
    counts = strikes_of(script, rule="until_success", tasks=["t"], target=2, wave=300)
    assert script.waves == [[("t", 0), ("t", 1)], [], []]
    assert counts["t"] == TaskCursor(states=2, rollouts=4, successes=2)


def test_until_success_strikes_out_a_state_after_its_last_attempt():
    counts = strikes_of(Script(t=["000", "100"]), rule="until_success", tasks=["t"], target=1, wave=1)
    assert counts["t"] == TaskCursor(states=2, rollouts=4, successes=1, struck_out=1)


def test_a_rule_that_does_not_exist():
    with pytest.raises(ValueError, match="rule must be one of algorithm, until_success, new_state; got 'sometimes'"):
        strikes_of(Script(t=["111"]), rule="sometimes", tasks=["t"])


@pytest.mark.parametrize("rule", STRIKE_RULES)
def test_n_strikes_continues_from_its_cursors(rule):
    whole = []
    counts = strikes_of(
        Script(**MORE_STATES), rule=rule, tasks=list(MORE_STATES), on_wave=lambda new, _: whole.extend(new)
    )
    for breaks_after in (1, 2, 4):
        parts, stored = [], []

        def save(new, now, parts=parts, stored=stored, limit=breaks_after):
            parts.extend(new)
            stored.append(json.dumps({task: dataclasses.asdict(cursor) for task, cursor in now.items()}))
            if len(stored) == limit:
                raise RuntimeError("broken off")

        with pytest.raises(RuntimeError, match="broken off"):
            strikes_of(Script(**MORE_STATES), rule=rule, tasks=list(MORE_STATES), on_wave=save)
        cursors = {task: TaskCursor.restored(fields) for task, fields in json.loads(stored[-1]).items()}
        final = strikes_of(
            Script(**MORE_STATES), rule=rule, tasks=list(MORE_STATES), initial=cursors,
            on_wave=lambda new, _, p=parts: p.extend(new),
        )  # fmt: skip
        assert final == counts and parts == whole


def test_n_strikes_with_nothing_left_to_do_runs_nothing():
    script = Script(t=[])
    done = TaskCursor(states=2, rollouts=6, successes=4)
    assert strikes_of(script, tasks=["t"], initial={"t": done}) == {"t": done}
    assert script.waves == []


def test_n_strikes_refuses_impossible_counts():
    script = Script(t=["111"])
    for wrong, said in (
        ({"target": 0}, "target must be at least 1, got 0"),
        ({"strikes": 0}, "strikes must be at least 1, got 0"),
        ({"max_rollouts_per_task": 2}, r"max_rollouts_per_task \(2\) must allow one state of 3 rollouts"),
        ({"tasks": ["t", "t"]}, "tasks must be distinct"),
    ):
        with pytest.raises(ValueError, match=said):
            strikes_of(script, **{"tasks": ["t"], **wrong})
    assert script.waves == []
    with pytest.raises(ValueError, match="asked for an initial state of t, got train:other:0"):
        strikes_of(script, tasks=["t"], draw=lambda task, k: TrainInit("other", k))


def test_fake_demonstrations_replay_to_success():
    settings = {"horizon": 60, "obs": "pixels", "image_size": 16}
    for index in range(5):
        init = TrainInit("up", index)
        demo = collect_demo(settings, init, noise=0.3, extra_steps=2, seed=1)
        environment = fake.make_environments(settings, 1)[0]
        start = environment.reset(init)
        assert len(demo.actions) == demo.success_step + 3
        assert demo.observations["camera"].shape == (len(demo.actions), 16, 16, 3)
        np.testing.assert_array_equal(demo.observations["state"][0], start.observation["state"])
        before = environment.step_chunk(demo.actions[: demo.success_step])
        assert not before.done
        np.testing.assert_array_equal(demo.observations["state"][demo.success_step], before.observation["state"])
        last = environment.step_chunk(demo.actions[demo.success_step :])
        assert last.success and last.steps == 1


def test_fake_demonstration_labels_and_failure():
    init = TrainInit("left", 0)
    noisy = collect_demo({}, init, noise=0.3, extra_steps=0, seed=1)
    clean = collect_demo({}, init, noise=0.3, extra_steps=0, seed=1, label="expert")
    np.testing.assert_array_equal(clean.actions, noisy.expert_actions)
    np.testing.assert_array_equal(clean.observations["state"], noisy.observations["state"])
    assert not np.array_equal(noisy.actions, noisy.expert_actions) and set(noisy.observations) == {"state"}
    assert collect_demo({"horizon": 3}, init, noise=0.0, extra_steps=0, seed=1) is None
