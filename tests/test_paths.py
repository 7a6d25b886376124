"""Walking folders: links once, loops never, hidden folders not entered."""

import os

import pytest

from rmlib.paths import AGAIN, below, hidden, walk


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "above" / "root"
    for name in ("a/x/1", "b/1", ".git/1", "__MACOSX/1"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("")
    return root


def walked(root):
    found = {}
    for folder, entries, problem in walk(root):
        assert folder not in found
        found[folder.relative_to(root).as_posix()] = problem or [entry.name for entry in entries]
    return found


def test_real_folders_come_before_links(tree):
    (tree / "0").symlink_to("a")
    assert walked(tree) == {
        ".": [".git", "__MACOSX"],
        "a": [],
        "a/x": ["1"],
        "b": ["1"],
        "0": AGAIN,
    }
    assert list(walked(tree))[-1] == "0"
    assert below(tree, "1") == [tree / "a/x/1", tree / "b/1"]


def test_links_lead_out_of_the_folder_and_never_above_it(tree, tmp_path):
    (tmp_path / "beside" / "deep").mkdir(parents=True)
    (tmp_path / "beside" / "deep" / "2").write_text("")
    (tree / "a" / "out").symlink_to(tmp_path / "beside")
    (tree / "a" / "up").symlink_to(tree.parent)
    (tree / "a" / "top").symlink_to(tree)
    (tmp_path / "beside" / "back").symlink_to(tree / "b")
    (tree / "b" / "self").symlink_to("self")
    found = walked(tree)
    assert found["a/out/deep"] == ["2"] and found["b"] == ["1", "self"]
    assert found["a/up"] == found["a/top"] == found["a/out/back"] == AGAIN


def test_many_links_end_soon(tmp_path):
    """Each of twenty folders has a link to every other: each is read once."""
    for i in range(20):
        (tmp_path / str(i)).mkdir()
        for j in range(20):
            (tmp_path / str(i) / f"to {j}").symlink_to(tmp_path / str(j))
    assert sum(not problem for _, _, problem in walk(tmp_path)) == 21


def test_what_cannot_be_read_is_said_and_what_is_gone_is_not_there(tree, monkeypatch):
    scan = os.scandir

    def refusing(path):
        if path.name in "ab":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert walked(tree)["a"] == "cannot be read (Permission denied)"
    assert list(walk(tree / "nowhere")) == []


def test_hidden_names():
    assert all(map(hidden, (".x", "__MACOSX", "thumbs.DB", "Desktop.ini", "@eaDir")))
    assert not any(map(hidden, ("x", "cat.png", "MACOSX", "thumbs")))
