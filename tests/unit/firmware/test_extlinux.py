# SPDX-License-Identifier: MIT
"""extlinux.conf as U-Boot reads it: the odd cases by hand, edits and the writer by property."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lab.errors import ExitCode, KitError
from lab.firmware.flash import bootcount, extlinux
from lab.firmware.flash.extlinux import Config, Label, parse, render

DEBIAN = """## /boot/extlinux/extlinux.conf
default l0
menu title U-Boot menu
prompt 0
timeout 50


label l0
\tmenu label Debian GNU/Linux 13 6.12.48
\tlinux /boot/vmlinuz-6.12.48
\tinitrd /boot/initrd.img-6.12.48
\tfdtdir /usr/lib/linux-image-6.12.48/
\tappend root=UUID=1234 ro quiet

label l0r
\tmenu label Debian GNU/Linux 13 6.12.48 (rescue target)
\tlinux /boot/vmlinuz-6.12.48
\tappend root=UUID=1234 ro single
"""
"""As Debian's u-boot-menu writes it."""


def test_debians_file() -> None:
    found = parse(DEBIAN)
    assert found.default == "l0" and found.timeout == 50 and found.prompt == 0 and not found.waits
    assert [label.name for label in found.attempts()] == ["l0", "l0r"]
    assert found.labels[0].fdtdir == "/usr/lib/linux-image-6.12.48/" and found.labels[1].initrd == ""


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("LABEL a\nKERNEL /x\nAPPEND b c  \n", lambda c: c.labels == (Label("a", "/x", "b c  "),)),
        ("label a\nlinux /x#conf\nlinux /y\n", lambda c: c.labels[0].linux == "/y"),
        ("label a\nfdt /x\nfdt /y\nlinux /k\n", lambda c: c.labels == (Label("a", fdt="/x"),)),
        (
            "label a\nbogus word\nlinux /k\n",
            lambda c: (c.labels[0].linux, len(c.ignored)) == ("", 2),
        ),
        ("label a\nappend x initrd=/i y\n", lambda c: c.labels[0].initrd == "/i"),
        ("label a\ninitrd /1\nappend initrd=/2\n", lambda c: c.labels[0].initrd == "/1"),
        ("default a\ndefault b\nlabel a\nlabel b\n", lambda c: c.attempts()[0].name == "b"),
        ("ontimeout b\nlabel a\nlabel b\n", lambda c: c.default == "b"),
        ("label a\nmenu default\nlabel b\nmenu default\n", lambda c: c.default == "a"),
        ("default b\nlabel a\nmenu default\nlabel b\n", lambda c: c.default == "b"),
        ("menu title x\nlabel a\n", lambda c: c.waits),
        ("menu title x\ntimeout 1\nlabel a\n", lambda c: not c.waits),
        ("prompt\nlabel a\n", lambda c: c.prompt == 0 and len(c.labels) == 1),
        ("default missing\nlabel a\nlabel b\n", lambda c: [x.name for x in c.attempts()] == ["a", "b"]),
        ("fallback b\ndefault a\nlabel a\nlabel b\n", lambda c: c.attempts(fallback=True)[0].name == "b"),
        ("default a\nlabel a\nlabel b\n", lambda c: c.attempts(fallback=True)[0].name == "a"),
        ("default a\nlabel a\nlabel b\n", lambda c: c.attempts(override="b")[0].name == "b"),
        ("label a # not a comment\n", lambda c: c.labels[0].name == "a # not a comment"),
        ("# default a\n\n  # label b\n", lambda c: c == Config()),
        ("label a\r\nlinux /x\r\n", lambda c: c.labels[0].linux == "/x\r"),
        ("label a\nlocalboot 1\nkaslrseed\nipappend 2\n", lambda c: c.labels[0].localboot),
        ("", lambda c: c.attempts() == []),
    ],
)
def test_what_u_boot_makes_of_it(text: str, check: object) -> None:
    assert check(parse(text)), parse(text)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["label\n", "label a\nappend\n", "default # x\nlabel a\n", "timeout", "include /x\n"])
def test_what_makes_the_whole_file_useless(text: str) -> None:
    with pytest.raises(KitError) as caught:
        parse(text)
    assert caught.value.code is ExitCode.FAILED


def test_includes() -> None:
    files = {"/more": "label b\nlinux /b\n", "/self": "include /self\n"}
    # within a label `menu include` is nothing, and `include` ends it
    both = parse("label a\nmenu include /more\ninclude /more\n", files.__getitem__)
    assert [label.name for label in both.labels] == ["a", "b"]
    found = parse("default b\ninclude /more\n", files.__getitem__)
    assert found.attempts()[0].linux == "/b"
    with pytest.raises(KitError, match="include one another"):
        parse(files["/self"], files.__getitem__)


WORD = st.text("abzA/0.=-", min_size=1, max_size=8)
TEXT = st.tuples(WORD, WORD).map(" ".join)
OPTION = st.one_of(st.just(""), WORD)
LABELS = st.builds(
    Label,
    name=WORD,
    linux=WORD,
    append=st.one_of(st.just(""), TEXT),
    initrd=OPTION,
    fdt=OPTION,
    fdtdir=OPTION,
    menu=st.one_of(st.just(""), TEXT),
)
CONFIGS = st.lists(LABELS, min_size=1, max_size=4, unique_by=lambda label: label.name).flatmap(
    lambda labels: st.builds(
        Config,
        labels=st.just(tuple(labels)),
        default=st.sampled_from([label.name for label in labels]),
        fallback=st.sampled_from(["", *(label.name for label in labels)]),
        timeout=st.integers(0, 600),
        prompt=st.integers(0, 1),
    )
)


@settings(deadline=None)
@given(CONFIGS)
def test_written_and_read(config: Config) -> None:
    assert parse(render(config)) == config


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except KitError:
        return
    assert set(found.attempts()) == set(found.labels)


@settings(deadline=None)
@given(CONFIGS, LABELS)
def test_an_entry_comes_and_goes(config: Config, label: Label) -> None:
    assume(config.label(label.name) is None)
    text = render(config)
    made = extlinux.with_entry(text, label, label.name, config.default)
    found = parse(made)
    assert found.default == label.name and found.fallback == config.default
    assert found.labels == (*config.labels, label)
    # the order in which a loader that cannot start it goes on
    assert found.attempts()[1:] == list(config.labels)
    assert found.attempts(fallback=True)[0].name == config.default
    back = parse(extlinux.with_default(extlinux.without_entry(made, label.name), config.default))
    assert back.labels == config.labels and back.default == config.default


def test_the_users_lines_stay() -> None:
    label = Label("new", "/Image", "root=/dev/x", fdt="/x.dtb")
    made = extlinux.with_entry(DEBIAN, label, "new", "l0")
    assert re.sub(r"(?m)^(default new|fallback l0)\n", "", made).startswith(DEBIAN.replace("default l0\n", ""))
    assert extlinux.with_entry(made, label, "new", "l0") == made, "a second time changes nothing"


def test_a_file_that_cannot_be_edited_is_refused() -> None:
    text = "default a\nlabel a\nlinux /k\nbogus\nlabel b\ndefault b\n"
    assert parse(extlinux.with_entry(text, Label("n", "/n"), "n", "a")).default == "n"
    with pytest.raises(KitError):
        extlinux.with_entry("label a\nlinux /k\n" + "#" * extlinux.SIZE_LIMIT, Label("n", "/n"), "n", "a")


def test_bootcount() -> None:
    fresh = bootcount.parse(b"")
    assert not fresh.valid and fresh.counted().encode() == b"\xbd\x01\x01\x01"
    armed = bootcount.Count(0)
    first = bootcount.parse(armed.counted().encode())
    assert first.count <= bootcount.LIMIT < first.counted().count
    idle = bootcount.Count(1, available=False)
    assert idle.counted() == idle and idle.proven and not armed.proven
    assert not bootcount.parse(b"\0\0\0\0").valid
