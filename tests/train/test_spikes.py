import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.train.spikes import LeftOut, Losses, Spike


def test_a_loss_beyond_the_factor_of_the_median_is_a_spike():
    losses = Losses(3.0, "rollback")
    losses.check(1, [1.0, 900.0] + 18 * [1.0])  # too few for a median: nothing is judged
    losses.check(21, 200 * [1.0])
    assert len(losses.recent) == 100
    losses.check(221, [2.9])
    with pytest.raises(Spike) as spike:
        losses.check(222, [1.0, 3.1, 1.0])
    assert spike.value.step == 223
    with pytest.raises(Spike):
        losses.check(300, [math.nan])
    resumed = Losses(3.0, "rollback")
    resumed.recent = list(losses.recent)
    with pytest.raises(Spike):
        resumed.check(301, [3.1])


def test_without_a_factor_only_what_is_not_finite_is_one():
    losses = Losses(None, "stop")
    losses.check(1, 50 * [1.0] + [1e30])
    with pytest.raises(Spike):
        losses.check(52, [math.inf])


def test_values_that_cannot_work_are_refused():
    for factor in (1.0, 0, True, "3", math.nan):
        with pytest.raises(ConfigError, match="spike_factor is .*; give a number above 1, or None"):
            Losses(factor, "stop")
    with pytest.raises(ConfigError, match="on_spike is 'rolback'; did you mean 'rollback'"):
        Losses(None, "rolback")


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), max_size=6), st.integers(0, 30))
def test_the_other_batches_keep_their_order(windows, start):
    """Against a list of all batches from which the left out ones are taken."""
    left_out, remaining = LeftOut(), list(range(1000))
    for first, more in windows:
        left_out = left_out.without(first, first + more)
        low, high = remaining[first - 1], remaining[first + more - 1]
        remaining = [batch for batch in remaining if not low <= batch <= high]
    assert [left_out.batch_of(step) for step in range(1, 60)] == remaining[:59]
    assert left_out.windows == sorted(left_out.windows)
    given = list(itertools.islice(left_out.batches(itertools.count, start), 20))
    assert given == remaining[start : start + 20]


def test_they_are_kept_in_the_run_folder(tmp_path):
    assert LeftOut.read(tmp_path).windows == []
    LeftOut([(3, 5), (9, 9)]).write(tmp_path)
    assert LeftOut.read(tmp_path).windows == [(3, 5), (9, 9)]


@pytest.mark.parametrize("damage", [lambda text: text.replace("5", "7"), lambda text: '{"batches": [[3]]}', None])
def test_a_damaged_or_missing_file_is_written_again_as_the_checkpoint_knows_them(tmp_path, caplog, damage):
    path, windows = tmp_path / "left_out.json", [(3, 5), (9, 9)]
    LeftOut(windows).write(tmp_path)
    assert LeftOut.resume(tmp_path, [[3, 5]]).windows == windows and not caplog.text, "newer than the checkpoint"
    path.unlink() if damage is None else path.write_text(damage(path.read_text()))
    assert LeftOut.resume(tmp_path, [[3, 5]]).windows == [(3, 5)]
    assert f"{path} " in caplog.text and "written again as the checkpoint knows them" in caplog.text
    assert LeftOut.read(tmp_path).windows == [(3, 5)]


def test_a_damaged_file_of_which_the_checkpoint_knows_nothing_is_refused(tmp_path):
    assert LeftOut.resume(tmp_path, None).windows == [] and not list(tmp_path.iterdir())
    (tmp_path / "left_out.json").write_text('{"batches": [[3]]}')
    with pytest.raises(UserError, match="left_out.json is damaged"):
        LeftOut.resume(tmp_path, None)
