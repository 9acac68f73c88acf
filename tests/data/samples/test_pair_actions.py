"""The actions of few pairs: whose they are, what they are, how they are scaled, and how often their pairs come."""

import copy
import json

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.loader import loader, orders
from lapa_jax.data.samples import pair_actions
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.data.samples.pair_actions import labelled_episodes
from lapa_jax.data.training import open_training
from lapa_jax.data.transforms import Augment, check_augment
from tests.data.samples import make
from tests.inference import step_shards

LENGTHS = {"train": [[9, 7, 3, 8], [9, 12, 6, 10]], "val": [[6, 7]]}
FEW = ("frames", "pair_action")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(with actions of two numbers, of which the second is constant in no episode; without)."""
    base = tmp_path_factory.mktemp("few")
    # Step 2 of the first episode has no action, so the pairs over it have none either.
    whole = make.write(base / "whole", LENGTHS, widths={"action": 2}, drop={(0, 2, "action.npy")})
    return whole, step_shards.write(base / "free", lengths=LENGTHS, actions=False)


def build(path, split="train", **fields):
    return pipeline.build({"path": str(path), "gap_frames": 3, "image_size": 16, "fields": FEW, **fields}, split)


def everything(source):
    return source.batch(range(len(source)))


def test_a_smaller_share_lies_within_a_larger_one_and_nothing_else_matters():
    ids = np.array([b"episode_%d" % i for i in range(1000)])
    usable = np.arange(1000) % 5 != 0  # 800 of them
    chosen = {share: labelled_episodes(ids, usable, share) for share in (0, 0.001, 0.01, 0.025, 0.1, 1)}
    assert [int(each.sum()) for each in chosen.values()] == [0, 1, 8, 20, 80, 800]
    for smaller, larger in zip(list(chosen.values()), list(chosen.values())[1:]):
        assert not (smaller & ~larger).any()
    assert not (chosen[1] & ~usable).any()
    # The order of the episodes in the shards does not matter: the same ids are chosen.
    shuffled = np.random.default_rng(0).permutation(1000)
    again = labelled_episodes(ids[shuffled], usable[shuffled], 0.025)
    assert set(ids[shuffled][again]) == set(ids[chosen[0.025]])
    assert labelled_episodes(ids[:30], np.ones(30, bool), 0.1).sum() == 3  # and not 4, by rounding


def test_the_action_of_a_pair_is_that_of_the_probe_in_standard_deviations(folders):
    few = everything(build(folders[0], action_share=1.0))
    probe = build(folders[0], fields=("frames", "net_action"))
    net = {tuple(key): action for *key, action in zip(*(everything(probe)[n] for n in
                                                        ("episode_id", "step", "net_action")))}  # fmt: skip
    keys = list(zip(few["episode_id"], few["step"]))
    has = np.array([key in net for key in keys])
    assert 0 < has.sum() < len(has), "some pairs have no action"
    np.testing.assert_array_equal(few["pair_action_mask"], np.repeat(has[:, None], 2, 1))
    assert (few["pair_action"][~has] == 0).all()
    actions = np.array([net[key] for key in keys if key in net], np.float64)
    expected = (actions - actions.mean(0)) / actions.std(0)
    np.testing.assert_allclose(few["pair_action"][has], expected, rtol=1e-4, atol=1e-4)


def test_only_chosen_episodes_give_their_actions(folders):
    half = build(folders[0], action_share=0.3)
    batch, labelled = everything(half), half.pair_actions.labelled
    assert labelled.sum() == 3  # of the seven that have a pair with an action, rounded up
    has = everything(build(folders[0]))["pair_action_mask"].any(1)
    np.testing.assert_array_equal(batch["pair_action_mask"].any(1), has & labelled[batch["episode_id"]])
    nothing = everything(build(folders[0], action_share=0.0))
    assert not nothing["pair_action_mask"].any() and nothing["pair_action"].shape == (len(half), 2)
    again = copy.deepcopy(half)  # as pickling for worker processes does
    for name, values in everything(again).items():
        np.testing.assert_array_equal(values, batch[name])


def test_a_number_that_never_varies_does_not_count(tmp_path):
    still = lambda column, row: row * [1, 0]  # noqa: E731
    folder = make.write(tmp_path / "still", [9, 8], widths={"action": 2}, change=still)
    batch = everything(build(folder))
    assert batch["pair_action_mask"].mean(0).tolist() == [1, 0] and (batch["pair_action"][:, 1] == 0).all()


def test_held_out_pairs_all_have_their_action_in_the_scale_of_training(folders):
    data = {"path": str(folders[0]), "gap_frames": 3, "image_size": 16, "fields": FEW, "action_share": 0.3}
    train = pipeline.build(data, "train")
    validation = pipeline.build(data, "val", fields=pipeline.eval_fields(data), statistics=statistics_of(train.meta()))
    batch, scale = everything(validation), train.pair_actions.summary
    assert batch["pair_action_mask"].all()
    expected = (batch["net_action"] - np.array(scale["mean"])) / np.array(scale["std"])
    np.testing.assert_allclose(batch["pair_action"], expected, rtol=1e-4, atol=1e-4)


def test_a_run_that_goes_on_has_the_scale_that_it_began_with(folders):
    data = {"path": str(folders[0]), "gap_frames": 3, "image_size": 16, "fields": FEW, "action_share": 0.3}
    began = pipeline.build(data, "train")
    saved = json.loads(json.dumps(statistics_of(began.meta())))  # as a checkpoint has it
    goes_on = pipeline.build(data, "train", statistics=saved)
    for name, values in everything(began).items():
        np.testing.assert_array_equal(everything(goes_on)[name], values)
    other = {name: {**each, "pair_action": {"mean": [0.0], "std": [1.0]}} for name, each in saved.items()}
    with pytest.raises(UserError, match="actions of 2 numbers, and the run was trained on pairs with 1"):
        pipeline.build(data, "val", statistics=other)


def test_few_actions_are_in_every_batch(folders):
    source = build(folders[0], action_share=0.1, action_draws=0.25)
    order = orders.train_order(source, 7)
    drawn = np.isin(order(np.arange(800)), source.emphasis.samples)
    assert abs(drawn.mean() - 0.25) < 0.02
    assert drawn.reshape(-1, 8).sum(1).min() >= 1
    # Every pair still comes in its turn, and the stream is a function of the position.
    assert set(order(np.arange(800)).tolist()) == set(range(len(source)))
    np.testing.assert_array_equal(order(np.arange(300, 400)), order(np.arange(800))[300:400])
    equal = build(folders[0], action_share=0.1, action_draws=0.0)
    assert equal.emphasis is None
    batch = next(loader.train_batches(source, seed=0, batch_size=16))
    assert batch["pair_action_mask"].any(1).sum() >= 3


def test_a_mixture_has_actions_where_one_of_its_parts_has_them(folders):
    parts = tuple({"path": str(folder), "weight": 1.0, "name": name} for folder, name in zip(folders, ("arm", "video")))
    data = {"mixture": parts, "gap_frames": 3, "image_size": 16, "fields": FEW, "action_share": 0.1}
    both = pipeline.build(data, "train")
    batch = everything(both)
    mask = batch["pair_action_mask"]
    assert batch["pair_action"].shape == mask.shape == (len(both), 2)
    assert mask[batch["dataset_id"] == 0].any() and not mask[batch["dataset_id"] == 1].any()
    drawn = orders.train_order(both, 0)(np.arange(400))
    # A quarter of those that are drawn from the arm, which is half of all.
    assert abs(np.isin(drawn, both.sources["arm"].emphasis.samples).mean() - 0.125) < 0.02
    notes = open_training({**data, "split_val": "val"}, batch_size=2).notes
    assert any("'arm': the actions of 1 of 7 episodes are used" in note for note in notes)
    assert "data set 'video' has no pair with an action" in notes


def test_data_without_actions_are_refused_in_one_line(folders):
    with pytest.raises(UserError, match="no pair of 'free' has an action: give data with actions") as refused:
        pair_actions.describe(build(folders[1]))
    assert "\n" not in str(refused.value)
    assert pair_actions.describe(build(folders[1], action_share=0.0)) == ["data set 'free' has no pair with an action"]
    control = pair_actions.describe(build(folders[0], action_share=0.0))
    assert control == ["data set 'whole': the actions of 0 of 7 episodes are used (0 of 40 pairs)"]
    with pytest.raises(UserError, match="a share of the episodes in"):
        build(folders[0], action_share=1.5)
    with pytest.raises(UserError, match="mirrors the images but not pair_action"):
        check_augment(Augment(flip=0.5), False, fields=FEW)
