"""The skill prior: numpy reference, cached sampling, and the one definition of the behaviour policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import networks_reference as reference

from cso_jax import fsq
from cso_jax.networks.transformer import positional_encoding
from cso_jax.policies.quest.prior import SkillPrior, entropy_of, log_prob_of

BATCH = 6


@pytest.fixture(scope="module")
def model():
    return SkillPrior(levels=(5, 5, 2), tokens=5, width=16, layers=2, heads=2)


@pytest.fixture(scope="module")
def context():
    return jax.random.normal(jax.random.key(1), (BATCH, 2, 16))


@pytest.fixture(scope="module")
def variables(model, context):
    return reference.init(model, context, jnp.zeros((BATCH, 5), jnp.int32))


@pytest.fixture(scope="module")
def teacher(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module")
def sample(model):
    def run(variables, context, keys, temperature, top_k):
        return model.apply(variables, context, keys, temperature=temperature, top_k=top_k, method="sample")

    return jax.jit(run, static_argnums=(3, 4))


def keys_of(seed, batch=BATCH):
    return jax.random.split(jax.random.key(seed), batch)


def test_teacher_forcing_matches_the_numpy_reference(model, variables, context, teacher):
    tokens = jax.random.randint(jax.random.key(2), (BATCH, 5), 0, 50)
    logits = teacher(variables, context, tokens)
    params = reference.tree64(variables["params"])
    for row in range(BATCH):
        expected = reference.prior(params, np.asarray(context[row], np.float64), np.asarray(tokens[row]), model)
        np.testing.assert_allclose(logits[row], expected, atol=2e-5)


def test_logits_see_earlier_tokens_only(variables, context, teacher):
    tokens = jnp.zeros((BATCH, 5), jnp.int32)
    logits = teacher(variables, context, tokens)
    changed = teacher(variables, context, tokens.at[:, 2].set(7))
    np.testing.assert_array_equal(logits[:, :3], changed[:, :3])
    assert jnp.all(jnp.any(logits[:, 3:] != changed[:, 3:], axis=-1))


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, 0), (0.7, 0), (1.0, 5), (1.6, 5), (1.0, 1), (0.0, 0), (0.0, 5)]
)
def test_sampled_log_probs_are_those_the_learner_recomputes(variables, context, teacher, sample, temperature, top_k):
    drawn = sample(variables, context, keys_of(3), temperature, top_k)
    assert drawn.tokens.shape == drawn.log_prob.shape == drawn.entropy.shape == (BATCH, 5)
    assert drawn.tokens.dtype == jnp.int32 and drawn.log_prob.dtype == jnp.float32
    logits = teacher(variables, context, drawn.tokens)  # uncached
    recomputed = log_prob_of(logits, drawn.tokens, temperature=temperature, support=drawn.support)
    np.testing.assert_allclose(drawn.log_prob, recomputed, atol=1e-5)
    entropy = entropy_of(logits, temperature=temperature, support=drawn.support)
    np.testing.assert_allclose(drawn.entropy, entropy, atol=1e-5)
    if top_k == 0:
        assert drawn.support is None
    else:
        assert drawn.support.shape == (BATCH, 5, top_k) and drawn.support.dtype == jnp.int32
        assert jnp.all(jnp.any(drawn.support == drawn.tokens[..., None], axis=-1))
        np.testing.assert_array_equal(drawn.support, jax.lax.top_k(logits, top_k)[1])
    if temperature == 0.0:
        np.testing.assert_array_equal(drawn.tokens, jnp.argmax(logits, -1))


def test_cached_equals_uncached(model, variables, context, teacher):
    tokens = jax.random.randint(jax.random.key(2), (BATCH, 5), 0, 50)
    whole = teacher(variables, context, tokens)
    caches = reference.apply(model, variables, context, method="_prefill")
    step = jax.jit(lambda *a: model.apply(variables, *a, method="_next_logits"))
    previous = jnp.full((BATCH,), 50)
    for t in range(5):
        position = positional_encoding(5, 16)[t]
        logits, caches = step(previous, position, caches, 2 + t)
        np.testing.assert_allclose(logits, whole[:, t], atol=1e-5)
        previous = tokens[:, t]


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (1.3, 5)])
@pytest.mark.parametrize("batch", [BATCH, 19])
def test_a_row_does_not_depend_on_its_batch(variables, sample, batch, temperature, top_k):
    contexts, keys = jax.random.normal(jax.random.key(5), (batch, 2, 16)), keys_of(6, batch)
    together = sample(variables, contexts, keys, temperature, top_k)
    for row in (0, 3, batch - 1):
        for place in (0, 2, batch - 1):
            others = 10 * jax.random.normal(jax.random.key(7 + place), contexts.shape)
            moved_context = others.at[place].set(contexts[row])
            moved_keys = keys_of(100 + place, batch).at[place].set(keys[row])
            moved = sample(variables, moved_context, moved_keys, temperature, top_k)
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[row], b[place]), together, moved)  # noqa: B023


def test_rows_with_equal_context_and_other_keys_differ(variables, context, sample):
    same = jnp.broadcast_to(context[:1], context.shape)
    assert len(np.unique(sample(variables, same, keys_of(8), 1.0, 0).tokens, axis=0)) == BATCH


def test_typed_and_raw_keys_agree(variables, context, sample):
    keys = keys_of(9)
    typed, raw = (sample(variables, context, k, 1.0, 5) for k in (keys, jax.random.key_data(keys)))
    jax.tree.map(np.testing.assert_array_equal, typed, raw)


def test_draws_follow_the_distribution(variables, context, teacher, sample):
    # The first token of many draws from one context against its probabilities.
    many = 4000
    tiled = jnp.broadcast_to(context[:1], (many, 2, 16))
    drawn = sample(variables, tiled, keys_of(10, many), 1.5, 5)
    support = np.asarray(drawn.support[0, 0])
    logits = teacher(variables, context, jnp.zeros((BATCH, 5), jnp.int32))[0, 0]
    expected = np.asarray(jax.nn.softmax(logits[support] / 1.5))
    observed = (np.asarray(drawn.tokens[:, :1]) == support).mean(0)
    np.testing.assert_allclose(observed, expected, atol=4 * np.sqrt(0.25 / many))


def test_temperature_may_be_traced(model, variables, context, sample):
    run = jax.jit(lambda t: model.apply(variables, context, keys_of(3), temperature=t, top_k=5, method="sample"))
    fixed = sample(variables, context, keys_of(3), 1.3, 5)
    np.testing.assert_array_equal(run(1.3).tokens, fixed.tokens)


def test_top_k_out_of_range_is_refused(model, variables, context):
    with pytest.raises(ValueError, match="top_k"):
        model.apply(variables, context, keys_of(0), top_k=51, method="sample")


class TestLogProbOf:
    """Hand-worked: logits log(1), log(2), log(5) are probabilities 1/8, 2/8, 5/8."""

    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))

    def test_full(self):
        np.testing.assert_allclose(log_prob_of(self.logits, jnp.array([1])), [np.log(2 / 8)], rtol=1e-6)
        entropy = -(np.log(1 / 8) / 8 + np.log(2 / 8) * 2 / 8 + np.log(5 / 8) * 5 / 8)
        np.testing.assert_allclose(entropy_of(self.logits), [entropy], rtol=1e-6)

    def test_temperature(self):
        # Temperature 1/2 squares the weights: 1, 4, 25 of 30.
        actual = log_prob_of(self.logits, jnp.array([2]), temperature=0.5)
        np.testing.assert_allclose(actual, [np.log(25 / 30)], rtol=1e-6)

    def test_support(self):
        support = jnp.array([[2, 1]])
        actual = log_prob_of(self.logits, jnp.array([1]), support=support)
        np.testing.assert_allclose(actual, [np.log(2 / 7)], rtol=1e-6)
        entropy = -(np.log(2 / 7) * 2 / 7 + np.log(5 / 7) * 5 / 7)
        np.testing.assert_allclose(entropy_of(self.logits, support=support), [entropy], rtol=1e-6)

    def test_outside_the_support_is_impossible(self):
        assert log_prob_of(self.logits, jnp.array([0]), support=jnp.array([[2, 1]]))[0] == -jnp.inf

    def test_greedy(self):
        actual = log_prob_of(jnp.tile(self.logits, (2, 1)), jnp.array([2, 1]), temperature=0)
        np.testing.assert_array_equal(actual, [0.0, -np.inf])
        np.testing.assert_array_equal(entropy_of(self.logits, temperature=0), [0.0])

    def test_gradient_is_one_hot_minus_probabilities(self):
        gradient = jax.grad(lambda x: log_prob_of(x, jnp.array([1])).sum())(self.logits)
        np.testing.assert_allclose(gradient, [[-1 / 8, 6 / 8, -5 / 8]], rtol=1e-6)
        gradient = jax.grad(lambda x: log_prob_of(x, jnp.array([1]), support=jnp.array([[2, 1]])).sum())(self.logits)
        np.testing.assert_allclose(gradient, [[0, 5 / 7, -5 / 7]], rtol=1e-6)


def test_an_impossible_token_adds_nothing_to_the_entropy():
    logits = jnp.array([[0.0, 0.0, -jnp.inf]])
    np.testing.assert_allclose(entropy_of(logits), [np.log(2)], rtol=1e-6)
    gradient = jax.grad(lambda x: entropy_of(x).sum())(logits)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("head", ["digits", "both"])
def test_a_codes_logit_is_the_sum_of_its_digits_logits(head):
    """In the order in which the quantiser counts: the first level varies fastest."""
    model = SkillPrior(levels=(3, 2, 4), tokens=2, width=16, layers=1, heads=2, head=head)
    context, tokens = jax.random.normal(jax.random.key(1), (2, 2, 16)), jnp.array([[5, 23], [0, 11]])
    params = model.init(jax.random.key(0), context, tokens)["params"]
    assert ("head" in params) == ("tok_emb" in params) == (head == "both")
    if head == "both":
        params = params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}
    logits = model.apply({"params": params}, context, tokens)
    table = jnp.arange(24)
    ratios = []
    for position in range(3):  # codes that differ in one digit differ by the same amount whatever their other digits
        digits = fsq.indices_to_digits(table, model.levels)
        steps = logits[..., digits[:, position] == 1] - logits[..., digits[:, position] == 0]
        np.testing.assert_allclose(steps, steps[..., :1] + jnp.zeros_like(steps), atol=1e-5)
        ratios.append(float(jnp.abs(steps).max()))
    assert min(ratios) > 1e-4


def test_digits_share_their_embeddings_between_codes():
    """A gradient through one earlier token reaches the codes that share a digit with it, and the start has its own."""
    model = SkillPrior(levels=(3, 2), tokens=2, width=16, layers=1, heads=2, head="digits")
    context = jnp.zeros((1, 1, 16))
    params = model.init(jax.random.key(0), context, jnp.zeros((1, 2), jnp.int32))["params"]

    def second(params, first):
        return jnp.sum(model.apply({"params": params}, context, jnp.array([[first, 0]]))[0, 1] ** 2)

    for first, rows in ((0, {0, 3}), (1, {1, 3}), (5, {2, 4})):
        gradient = jax.grad(second)(params, first)
        touched = np.flatnonzero(np.abs(gradient["digit_emb"]).sum(axis=1) > 0)
        assert set(touched.tolist()) == rows
        assert np.abs(gradient["start_emb"]).sum() > 0


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("head", ["flat", "digits", "both"])
def test_cached_sampling_gives_the_teachers_probabilities(head, guided):
    model = SkillPrior(levels=(5, 5, 2), tokens=5, width=16, layers=2, heads=2, head=head, guide_sharpness=2.0 * guided)
    context = jax.random.normal(jax.random.key(1), (BATCH, 2, 16))

    def digits(tokens):
        """Each token's depend on the tokens before it, as a residual autoencoder's do."""
        before = jnp.cumsum(tokens, axis=1) - tokens
        return jnp.stack([before % 5 / 2, before % 3 + 0.3, before % 2 - 0.2], axis=-1)

    guide = digits if guided else None
    tokens = jnp.zeros((BATCH, 5), jnp.int32)
    params = model.init(jax.random.key(0), context, tokens, digits(tokens) if guided else None)
    drawn = model.apply(params, context, keys_of(3), guide, top_k=4, method="sample")
    logits = model.apply(params, context, drawn.tokens, digits(drawn.tokens) if guided else None)
    found = log_prob_of(logits, drawn.tokens, temperature=1.0, support=drawn.support)
    np.testing.assert_allclose(found, drawn.log_prob, atol=1e-5)


def test_a_guide_makes_the_codes_around_it_likely():
    """Sharpness 1 and nothing learned: each digit's logits are minus the squared distance from the guide's row."""
    model = SkillPrior(levels=(3, 2), tokens=2, width=16, layers=1, heads=2, guide_sharpness=1.0)
    tokens = jnp.zeros((1, 2), jnp.int32)
    digits = jnp.array([[[1.75, 0.25], [-0.5, 1.0]]])
    context = jnp.zeros((1, 1, 16))
    params = model.init(jax.random.key(0), context, tokens, digits)["params"]
    logits = model.apply({"params": params}, context, tokens, digits)
    codes = np.arange(6)
    for k, (first, second) in enumerate(np.asarray(digits[0])):
        expected = -((codes % 3 - first) ** 2) - (codes // 3 - second) ** 2
        np.testing.assert_allclose(logits[0, k], expected, atol=1e-5)
    assert np.argmax(logits[0], axis=-1).tolist() == [2, 3]


def test_how_sharply_a_guide_is_followed_is_learned():
    """A bias of ln 3 on the second level: its squared distances weigh three times as much, those of the first once."""
    model = SkillPrior(levels=(3, 2), tokens=1, width=16, layers=1, heads=2, guide_sharpness=1.0)
    tokens, context, digits = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, 16)), jnp.zeros((1, 1, 2))
    params = model.init(jax.random.key(0), context, tokens, digits)["params"]
    params["sharpness_head"]["bias"] = jnp.log(jnp.array([1.0, 3.0]))
    logits = model.apply({"params": params}, context, tokens, digits)
    np.testing.assert_allclose(logits[0, 0], [0, -1, -4, -3, -4, -7], atol=1e-5)


@pytest.mark.parametrize("sharpness", [0.0, 1.0])
def test_a_guide_and_a_sharpness_belong_together(sharpness):
    model = SkillPrior(levels=(3, 2), tokens=1, width=16, layers=1, heads=2, guide_sharpness=sharpness)
    tokens, context = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, 16))
    with pytest.raises(ValueError, match="a guide belongs to a guide_sharpness above 0"):
        model.init(jax.random.key(0), context, tokens, None if sharpness else jnp.zeros((1, 1, 2)))


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="head must be one of flat, digits, both; got 'code'"):
        SkillPrior(head="code").init(jax.random.key(0), jnp.zeros((1, 2, 384)), jnp.zeros((1, 8), jnp.int32))
