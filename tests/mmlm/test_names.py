"""Names of folders, and of repositories on the hub."""

from pathlib import Path

import pytest

from mmlm.names import check_adapter, is_hub_id


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


def test_runs_are_in_folders_before_there_is_any(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="runs/quickstart: no such folder, and the hub was not asked"):
        check_adapter("runs/quickstart")


@pytest.mark.parametrize("name", ["runs/mine", "owner/name"])
def test_names_that_an_adapter_may_have(name):
    check_adapter(name)


def test_a_revision_is_one_on_the_hub():
    (Path("owner") / "other").mkdir(parents=True)
    check_adapter("owner/name", "main")
    with pytest.raises(ValueError, match="owner/name: no such folder, and the hub was not asked, since owner is where"):
        check_adapter("owner/name")


@pytest.mark.parametrize("name", ["runs/mien", "./owner/name", "/no/such/folder", "name", "../x/y", "a/b/c"])
def test_names_that_no_adapter_has_are_not_looked_up(name):
    with pytest.raises(ValueError, match=f"^{name}: no such folder.*; `mmlm quickstart` trains an adapter"):
        check_adapter(name)
