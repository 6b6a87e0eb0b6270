"""Addresses are told from paths, and those that may hold secrets are refused without being shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkc_fast import ArgumentError
from mkc_fast.engine.storage.addresses import Address, is_address, place_of, read_entry, without_secrets


@pytest.mark.parametrize("text", ["/a/b.wav", "a.wav", "C:\\a.wav", "utt s3://b/k", "s3:/b/k", "a/b://c", "x://b"])
def test_paths_are_no_addresses(text: str) -> None:
    assert not is_address(text)


def test_a_path_of_an_address_is_taken_for_it() -> None:
    assert place_of(Path("s3://bucket/model/")) == place_of("s3://bucket/model/") == Address("s3://bucket/model")
    assert place_of(Path("file:///a/b")) == place_of("file:///a/b") == Path("/a/b")
    assert place_of(Path("model")) == Path("model")
    assert place_of("./s3/model") == Path("s3/model")


def test_files_at_addresses_are_paths() -> None:
    assert read_entry("file:///a/b%20c.wav") == "/a/b c.wav"
    assert read_entry("file://localhost/a.wav") == "/a.wav"
    with pytest.raises(ArgumentError, match="absolute"):
        read_entry("file://host/a.wav")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://key:SECRET@bucket/a.wav", "password"),
        ("sftp://me%3ASECRET@host/a.wav", "password"),
        ("https://host/a.wav?X-Amz-Signature=SECRET", "query"),
        ("zip://a.wav::s3://key:SECRET@bucket/a.zip", "chains"),
        ("s3://", "names no object"),
        ("s3://bucket/a\x1b.wav", "control"),
    ],
)
def test_what_may_hold_secrets_is_refused_and_not_shown(url: str, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason) as refused:
        read_entry(url)
    assert "SECRET" not in str(refused.value)


def test_users_without_passwords_and_marks_in_keys_are_kept() -> None:
    for url in ("abfs://container@account.dfs.core.windows.net/a.wav", "sftp://me@host/a.wav", "s3://bucket/what?.wav"):
        assert read_entry(url) == url


def test_secrets_are_cut_from_what_libraries_say() -> None:
    said = "Cannot connect to proxy http://me:SECRET@proxy:3128, url='https://h/a?X-Amz-Signature=SECRET'"
    assert "SECRET" not in without_secrets(said)
    assert "proxy:3128" in without_secrets(said)
