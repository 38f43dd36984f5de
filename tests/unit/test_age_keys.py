# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keys of age: only exactly those are taken, and no message shows a secret one."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from _pgstream import age_keys
from _pgstream.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.agekeys import LETTERS, KeyPair, bech32

PAIR, OTHER = KeyPair(), KeyPair()


@given(st.binary(min_size=32, max_size=32))
def test_every_key_comes_back(key: bytes) -> None:
    assert age_keys.recipient_key(bech32("age", key)) == key
    assert age_keys.identity_keys(bech32("age-secret-key-", key).upper()) == (key,)


def test_another_writer_of_these_keys() -> None:
    """A pair that the program age-keygen made: that both ends here agree would prove little."""
    identity = "AGE-SECRET-KEY-1XMWWC06LY3EE5RYTXM9MFLAZ2U56JJJ36S0MYPDRWSVLUL66MV4QX3S7F6"
    (secret,) = age_keys.identity_keys(identity)
    assert bech32("age-secret-key-", secret).upper() == identity
    recipient = "age1lvyvwawkr0mcnnnncaghunadrqkmuf9e6507x9y920xxpp866cnql7dp2z"
    assert bech32("age", age_keys.recipient_key(recipient)) == recipient


@given(place=st.integers(4, 61), letter=st.sampled_from(LETTERS))
def test_a_mistyped_key(place: int, letter: str) -> None:
    changed = PAIR.recipient[:place] + letter + PAIR.recipient[place + 1 :]
    if changed != PAIR.recipient:
        with pytest.raises(UsageError, match="mistyped"):
            age_keys.recipient_key(changed)


@pytest.mark.parametrize("text", [
    "", "age1", "1", "age", PAIR.recipient[:-1], PAIR.recipient.upper(), PAIR.recipient.replace("age", "agf"),
    PAIR.recipient[:10] + PAIR.recipient[10:].upper(), PAIR.recipient + " ", bech32("age", PAIR.public[:31]),
    bech32("age", PAIR.public + b"\0"), bech32("age1pq", PAIR.public), "ssh-ed25519 AAAA", "age1yubikey1qqq",
    "age1\u00e9",
], ids=count())  # fmt: skip # keys are other ones in each process
def test_what_is_no_recipient(text: str) -> None:
    with pytest.raises(UsageError, match="is not an age recipient of type X25519"):
        age_keys.recipient_key(text)


def test_padding_bits_are_zero() -> None:
    values = [LETTERS.index(letter) for letter in PAIR.recipient[4:-6]]
    values[-1] |= 1  # 52 letters hold 260 bits, of which 4 are padding
    check = age_keys.checksum("age", [*values, 0, 0, 0, 0, 0, 0]) ^ 1
    values += [check >> 5 * (5 - at) & 31 for at in range(6)]
    with pytest.raises(UsageError, match="another length"):
        age_keys.recipient_key("age1" + "".join(LETTERS[value] for value in values))


def test_an_identity_where_a_recipient_belongs_is_not_shown() -> None:
    for text in (PAIR.identity, PAIR.identity.lower(), PAIR.identity[:-1]):
        with pytest.raises(UsageError) as caught:
            age_keys.read_recipients([text])
        assert text[20:] not in caught.value.sentence() and text[20:].lower() not in caught.value.sentence()


def test_recipients_from_lists_and_files(tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    file.write_text("# team\n\n %s \n%s\n" % (OTHER.recipient, PAIR.recipient))
    assert age_keys.read_recipients([PAIR.recipient, str(file)]) == (PAIR.recipient, OTHER.recipient)
    assert age_keys.read_recipients([]) == ()
    for text, message in (("# none\n", "names no recipient"), (PAIR.identity, "not an age recipient")):
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            age_keys.read_recipients([str(file)])
    with pytest.raises(UsageError, match="cannot read .*/nowhere: No such file"):
        age_keys.read_recipients([str(tmp_path / "nowhere")])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not text"):
        age_keys.read_recipients([str(file)])


def test_no_more_recipients_than_a_header_holds() -> None:
    many = [bech32("age", number.to_bytes(32, "big")) for number in range(age_keys.MOST_RECIPIENTS + 1)]
    assert len(age_keys.read_recipients(many[1:])) == age_keys.MOST_RECIPIENTS
    with pytest.raises(UsageError, match="101 recipients are more"):
        age_keys.read_recipients(many)


def test_an_identity_file() -> None:
    text = "# created: 2026-01-31\n# public key: %s\n%s\n\n%s\r\n" % (PAIR.recipient, PAIR.identity, OTHER.identity)
    assert age_keys.identity_keys(text) == (PAIR.secret, OTHER.secret)
    assert age_keys.secret_lines(text) == [PAIR.identity, OTHER.identity]


@pytest.mark.parametrize("text, message", [
    ("", "holds no key"), ("# nothing\n", "holds no key"), (PAIR.recipient, "line 1 .* small letters"),
    ("#\n" + PAIR.identity[:-1], "line 2 .* mistyped"), (PAIR.identity.lower(), "small letters"),
    ("AGE-PLUGIN-YUBIKEY-1QQQ", "another beginning"), (PAIR.identity + PAIR.identity, "another beginning|mistyped"),
], ids=count())  # fmt: skip
def test_what_is_no_identity(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        age_keys.identity_keys(text)
    assert PAIR.identity[20:-1] not in caught.value.sentence()
