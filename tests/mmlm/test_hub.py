"""Names of folders and of repositories on the hub."""

import pytest

from mmlm.hub import check_adapter, is_hub_id


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("owner/name", True),
        ("name", True),
        ("runs/mine", False),
        ("runs", False),
        ("", False),
        ("/no/such/folder", False),
        ("not there", False),
    ],
)
def test_what_the_hub_may_have(name, may):
    assert is_hub_id(name) == may


@pytest.mark.parametrize("name", ["runs/mine", "owner/name"])
def test_names_that_an_adapter_may_have(name):
    check_adapter(name)


@pytest.mark.parametrize("name", ["runs/mien", "./owner/name", "/no/such/folder", "name", "../x/y", "a/b/c"])
def test_names_that_no_adapter_has_are_not_looked_up(name):
    with pytest.raises(ValueError, match=f"^{name}: no such folder; `mmlm quickstart` trains an adapter"):
        check_adapter(name)
