"""When a run says that its codebook costs too much."""

import pytest

from cso_jax.results import codebook_cost


def rows(reference, ceiling):
    """Rows of both evaluations: the first so many of 100 initial states succeed."""
    return [
        {"stage": stage, "task": "t", "init": f"eval:t:{i}", "seed": 0, "success": i < wins}
        for stage, wins in (("reference", reference), ("imitation", 100), ("ceiling", ceiling))
        for i in range(100)
    ]


def test_the_sentence_has_the_numbers_and_what_to_raise():
    sentence = codebook_cost(rows(90, 60))
    assert sentence.startswith(
        "the codebook lets through 60.0 % where behaviour cloning alone reaches 90.0 %: -30.0 poi"
    )
    assert "n = 100 paired episodes" in sentence and "95 % interval -39.0 to -21.0" in sentence
    assert sentence.endswith("raise config.codebook.steps or config.autoencoder.width")


@pytest.mark.parametrize(("reference", "ceiling"), [(90, 80), (90, 90), (60, 90)])
def test_ten_points_and_gains_are_no_reason(reference, ceiling):
    assert codebook_cost(rows(reference, ceiling)) == ""


def test_few_episodes_show_nothing():
    few = [row for row in rows(90, 60) if row["init"] in ("eval:t:59", "eval:t:60", "eval:t:2")]
    assert len(few) == 9 and codebook_cost(few) == ""
    assert codebook_cost([]) == codebook_cost(row for row in rows(90, 10) if row["stage"] != "ceiling") == ""
