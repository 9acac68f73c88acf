"""Less of what tensorstore never frees: keys and values of each JSON object, and each list, that it gives to Python.

So it is in 0.1.86, the newest. Orbax asks it in every save for its metrics, four times, and for the spec of the same
folder, once an array: 100 kB a save of a small LAQ, which were 100 MB after 1,000 saves.
"""

import copy
import functools

import tensorstore

MOST = 64
"""Specs that are remembered; a save asks for a few."""


@functools.cache
def ask_once() -> None:
    """From now on tensorstore makes JSON of a key-value store's spec once, and has no metrics to tell.

    Both for the whole process. Nothing depends on the metrics: orbax only logs the bytes of a save by them.
    """
    to_json, remembered = tensorstore.KvStore.Spec.to_json, {}

    def remembered_json(spec: tensorstore.KvStore.Spec, **options):
        key = repr(spec), *options.items()  # the text of a spec has all that is set in it
        if key not in remembered:
            if len(remembered) >= MOST:
                remembered.clear()
            remembered[key] = to_json(spec, **options)
        return copy.deepcopy(remembered[key])

    tensorstore.KvStore.Spec.to_json = remembered_json
    tensorstore.experimental_collect_matching_metrics = lambda *arguments, **options: []
