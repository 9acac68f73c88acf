from lapa_jax.data.convert.plan import assign_splits, episode_ids


def test_splits_are_stable_and_never_empty():
    ids = [f"e{k}" for k in range(2000)]
    splits = assign_splits(ids, "auto", 0.1)
    assert 150 < splits.count("val") < 250
    assert assign_splits(ids[:700], "auto", 0.1) == splits[:700], "adding data moves no episode"
    for count in (2, 3, 5):
        assert set(assign_splits(ids[:count], "auto", 0.01)) == {"train", "val"}
        assert set(assign_splits(ids[:count], "auto", 0.99)) == {"train", "val"}
    assert set(assign_splits(ids, "auto", 0.0)) == {"train"} and set(assign_splits(ids, "val", 0.1)) == {"val"}


def test_ids_are_plain_and_unique():
    paths = ["a/b.mp4", "a-b.mp4", "a b.gif", "c_d/ü.mp4", "c/" + "x" * 300 + ".mp4"]
    paths += ["ü.mp4", "ö.mp4", ".", "/", "plain.mp4"]
    ids = episode_ids(paths)
    assert len(set(ids)) == len(ids) and ids[-1] == "plain"
    assert all(i and len(i) <= 64 and i.replace("-", "").isalnum() and i.isascii() for i in ids)
    assert episode_ids(list(reversed(paths))) == list(reversed(ids))
