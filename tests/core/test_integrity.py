import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.integrity import read_checked_json, write_checked_json


@pytest.mark.parametrize("content", [{}, {"action_probe_r2_untrained": -0.02, "name": "ä"}])
def test_a_checked_object_comes_back_and_any_change_is_noticed(tmp_path, content):
    path = tmp_path / "untrained.json"
    write_checked_json(path, content)
    assert read_checked_json(path) == content
    text = path.read_text()
    for changed in (text.replace("{", '{"more": 1, ', 1), "[]", "{}", text[:-3],
                    text.replace("-0.02", "-0.03") if content else "null"):  # fmt: skip
        path.write_text(changed)
        with pytest.raises(UserError, match="untrained.json"):
            read_checked_json(path)
