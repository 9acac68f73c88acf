import itertools
import json

from lapa_jax.data.convert.totals import Totals


def part(steps, fps, blank=None, **changes):
    nothing = {"left_out": [], "dropped": {}, "text": False, "remarks": {}, "filtered": {}}
    pieces = [{"id": "e", "steps": steps, "blank": blank or {}}]
    return {"pieces": pieces, "fps": fps, **nothing, **changes}


def test_sums_do_not_depend_on_order_and_survive_json():
    again = {"frames repeated": 1}
    parts = [
        part(3, 10.0, left_out=["reward"], dropped={"first step": 1}),
        part(4, 10.001, blank={"image_wrist": 4}, text=True, remarks={"frames repeated": 2}),
        part(5, 9.999, left_out=["reward", "done"], dropped={"first step": 1}, blank={"image_wrist": 1}, remarks=again),
    ]
    seen = []
    for order in itertools.permutations(parts):
        half, whole = Totals(), Totals()
        for p in order[:2]:
            half.add(Totals.of_part(p))
        whole.add(json.loads(json.dumps(half.to_json())))
        whole.add(Totals.of_part(order[2]))
        seen.append(whole)
    assert all(totals == seen[0] for totals in seen)
    totals = seen[0]
    assert (totals.episodes, totals.steps, totals.text) == (3, 12, True) and totals.left_out == {"reward", "done"}
    assert totals.dropped == {"first step": 2} and totals.blank == {"image_wrist": 5}
    assert totals.remarks == {"frames repeated": 3}
    assert totals.common_fps() == 9.999
    totals.add(Totals.of_part(part(1, 11.0)))
    assert totals.common_fps() is None, "rates differ"
    twice = part(6, 10.0, filtered={"cut": 1})
    twice["pieces"].append({"id": "f", "steps": 2, "blank": {"image_wrist": 2}})
    left = Totals.of_part(twice, {"f": "e"})
    assert (left.episodes, left.steps, left.blank) == (1, 6, {})
    assert left.filtered == {"cut": 1, "duplicate": 1, "frames of duplicate": 2}
    clockless = Totals.of_part(part(1, None))
    clockless.add(Totals.of_part(part(1, 10.0)))
    assert clockless.common_fps() is None
