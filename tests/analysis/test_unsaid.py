"""What cannot be told of odd sweeps is said, in words."""

import pytest

from analysis import analyse
from tests.analysis.synthetic import odd_sweeps, sweep

SECTIONS = {
    "axes": "effect", "interactions": "interaction", "importance": "Importance", "following": "what to run next",
    "fronts": "front", "sensitivities": "learning rate",
}  # fmt: skip


@pytest.mark.parametrize("name", odd_sweeps())
def test_every_empty_section_has_a_sentence(name):
    analysis = analyse(odd_sweeps()[name])
    said = " ".join(analysis.unsaid).lower()
    nothing = "nothing is said" in said
    for section, words in SECTIONS.items():
        assert getattr(analysis, section) or nothing or words.lower() in said
    for sentence in analysis.unsaid:
        assert sentence[0].isupper() and not sentence.endswith(".")
        assert "None" not in sentence and "nan" not in sentence.split()


def test_the_order_of_rows_changes_nothing():
    frame = sweep(arm_seeds=2)
    assert analyse(frame) == analyse(frame.sample(frac=1, random_state=1))


def test_what_intervals_take_for_granted_is_said_where_it_can_matter():
    """Of designs with one seed, and of designs that came through pruning."""
    one, two = (" ".join(analyse(sweep(arm_seeds=n)).unsaid) for n in (1, 2))
    assert "with one seed" in one and "with one seed" not in two
    frame = sweep(arm_seeds=2)
    assert "luck" not in two and not (frame["state"] == "pruned").any()
    last = frame.loc[frame["role"] == "arm", "trial"].max()
    gone = frame[(frame["trial"] != last) | (frame["rung"] < frame["rung"].max())].copy()
    gone.loc[gone["trial"] == last, "state"] = "pruned"
    assert "luck has brought designs through pruning" in " ".join(analyse(gone).unsaid)
