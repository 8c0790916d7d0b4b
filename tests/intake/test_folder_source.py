"""Intake: which files are taken, by whom, where they go, and what their bytes become."""

import hashlib
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspect_xai.errors import IntakeError, PictureError, SettingsError
from inspect_xai.intake.decode import decode_picture, picture_size
from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.intake.identity import PathPattern, by_file
from inspect_xai.intake.sources import Claim, read_picture, utc
from inspect_xai.intake.url_source import UrlSource, open_source
from inspect_xai.records import Part, PictureLimits
from tests.support import hostile

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LIMITS = PictureLimits()


def write(path: Path, *, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hostile.encoded(hostile.surface(seed)))
    return path


# --- pixels


def test_color_order_is_rgb() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert np.array_equal(decode_picture(hostile.encoded(red), limits=LIMITS), red)
    assert np.array_equal(decode_picture(hostile.encoded(red, ".bmp"), limits=LIMITS), red)


def test_16_bits_become_8_by_the_written_rule() -> None:
    values = np.zeros((8, 8), np.uint16)
    values[0, :5] = [0, 128, 129, 65_535, 4_095]
    data = hostile.encoded(values)
    assert decode_picture(data, limits=LIMITS)[0, :5].tolist() == [0, 0, 1, 255, 16]  # round(255 v / 65535)
    assert decode_picture(data, limits=PictureLimits(white_level=4_095))[0, :5].tolist() == [0, 8, 8, 255, 255]


def test_exif_orientation_is_ignored_unless_asked_for() -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    data = hostile.pillow("RGB", "JPEG", exif=exif)
    assert decode_picture(data, limits=LIMITS).shape == (40, 60, 3)
    assert decode_picture(data, limits=PictureLimits(honour_exif=True)).shape == (60, 40, 3)


@pytest.mark.parametrize("name", hostile.SOUND)
def test_odd_pictures_decode(name: str) -> None:
    pixels = decode_picture(hostile.SOUND[name], limits=LIMITS)
    assert pixels.shape[:2] == picture_size(hostile.SOUND[name]) == (40, 60)
    assert pixels.dtype == np.uint8
    assert 40 < pixels.mean() < 210


@pytest.mark.parametrize("name", hostile.BROKEN)
def test_broken_files_say_why(name: str) -> None:
    content, words = hostile.BROKEN[name]
    with pytest.raises(PictureError, match=words):
        decode_picture(content, limits=LIMITS)


@given(st.binary(max_size=80), st.sampled_from([hostile.PNG, hostile.JPEG, hostile.TIFF]), st.integers(0, 200))
def test_damaged_bytes_never_do_worse_than_a_picture_error(noise: bytes, data: bytes, at: int) -> None:
    damaged = data[:at] + noise + data[at + len(noise) :]
    try:
        pixels = decode_picture(damaged, limits=PictureLimits(max_pixels=10_000))
    except PictureError:
        return
    assert pixels.size <= 30_000


def test_a_file_is_read_with_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", seed=3)
    picture = read_picture(path, limits=LIMITS)
    assert np.array_equal(picture.pixels, hostile.surface(3))
    assert len(picture.sha256) == 64
    with pytest.raises(PictureError, match=r"b\.png cannot be read: No such file"):
        read_picture(tmp_path / "b.png", limits=LIMITS)
    with pytest.raises(PictureError, match="at most"):
        read_picture(path, limits=PictureLimits(max_pixels=-(1 << 17)))


# --- identity


def test_the_default_pattern_reads_every_field() -> None:
    identity = PathPattern().identify("L1/S3/SN0042_LOT7_CAM1_top_early_20261122T061500Z.png", modified_at=NOON)
    assert identity.part.serial == "SN0042"
    assert identity.part.lot == "LOT7"
    assert (identity.line, identity.station, identity.camera) == ("L1", "S3", "CAM1")
    assert (identity.view, identity.shift, identity.known_from) == ("top", "early", "path")
    assert identity.captured_at == datetime(2026, 11, 22, 6, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    "name",
    [
        "SN0042_LOT7_CAM1_top_early_20261122T061500Z.png",  # no folders
        "L1/S3/SN_0042_LOT7_CAM1_top_early_20261122T061500Z.png",  # one field too many: not guessed
        "L1/S3/SN0042_LOT7_CAM1_top_early_20261322T061500Z.png",  # month 13
        "L1/S3/SN0042_LOT7_CAM1_top_early_20261122.png",
    ],
)
def test_another_path_gives_serial_and_time_from_the_file(name: str) -> None:
    identity = PathPattern().identify(name, modified_at=NOON)
    assert identity.part.serial == Path(name).stem
    assert (identity.captured_at, identity.known_from, identity.line) == (NOON, "file", "")


def test_an_archived_picture_put_back_is_the_same_part() -> None:
    identity = PathPattern("{serial}_{captured_at}").identify(
        "SN7_20261122T061500.250Z~0123456789ab.png", modified_at=NOON
    )
    assert identity.part.serial == "SN7"
    assert identity.captured_at.microsecond == 250_000


def test_a_sidecars_time_without_zone_is_the_plants() -> None:
    sidecar = b'{"serial": "SN9", "captured_at": "2026-11-22T07:00:00"}'
    at_the_plant = PathPattern("{serial}", zone=ZoneInfo("Europe/Berlin"))
    identity = at_the_plant.identify("SN1.png", modified_at=NOON, sidecar=sidecar)
    assert identity.captured_at == datetime(2026, 11, 22, 6, tzinfo=UTC)
    with pytest.raises(PictureError, match=r"captured_at is '2026-11-22T07:00:00'.*time_zone in \[report\]"):
        PathPattern("{serial}").identify("SN1.png", modified_at=NOON, sidecar=sidecar)
    german = b'{"serial": "SN9", "captured_at": "22.11.2026 07:00:00"}'
    with pytest.raises(PictureError, match="write year, month and day in this order"):
        at_the_plant.identify("SN1.png", modified_at=NOON, sidecar=german)


def test_a_sidecar_goes_before_the_path() -> None:
    sidecar = b'{"serial": "SN9", "captured_at": "2026-11-22T07:00:00+01:00", "exposure_us": 120}'
    identity = PathPattern("{line}/{serial}_{lot}").identify("L1/SN1_LOT1.png", modified_at=NOON, sidecar=sidecar)
    assert (identity.part.serial, identity.part.lot, identity.line) == ("SN9", "LOT1", "L1")
    assert identity.captured_at == datetime(2026, 11, 22, 6, tzinfo=UTC)
    assert identity.known_from == "sidecar"


@pytest.mark.parametrize(
    "pattern", ["{line}", "{serial}{lot}", "{serial}_{serial}", "{serial}_{part}", "{serial", "{}"]
)
def test_a_pattern_that_can_be_read_two_ways_is_refused(pattern: str) -> None:
    with pytest.raises(SettingsError, match="path pattern"):
        PathPattern(pattern)


def test_a_pattern_can_pass_over_something() -> None:
    identity = PathPattern("{_}/{serial}-{_}").identify("x/SN_1-77.png", modified_at=NOON)
    assert (identity.part.serial, identity.known_from) == ("SN_1", "path")


# --- the folder


def names(claims: list[Claim]) -> list[str]:
    return sorted(claim.file_name for claim in claims)


def test_files_are_claimed_read_and_archived(tmp_path: Path) -> None:
    original = write(tmp_path / "L1/S3/a.png")
    original.with_suffix(".json").write_text("{}")
    content = original.read_bytes()
    with FolderSource(tmp_path, settle_s=0) as source:
        (claim,) = source.claim(10)
        assert claim.file_name == "L1/S3/a.png"
        assert not original.exists()
        assert source.claim(10) == []
        assert source.read(claim, limits=LIMITS) == content
        assert source.sidecar(claim) == b"{}"
        destination = source.destination(claim, captured_at=NOON, sha256="ab" * 32, rejected=False)
        source.move(claim, destination=destination)
        source.move(claim, destination=destination)  # as after a crash
    archived = tmp_path / "_archive/2026-11-22/L1/S3/a~abababababab.png"
    assert str(archived) == destination
    assert archived.read_bytes() == content
    assert archived.with_suffix(".json").read_text() == "{}"
    assert list((tmp_path / "_claimed").iterdir()) == []


def test_chunks_follow_each_other_and_late_files_are_found(tmp_path: Path) -> None:
    for index in range(5):
        write(tmp_path / f"{index}.png", seed=index)
    with FolderSource(tmp_path, settle_s=0) as source:
        sizes = [len(source.claim(2)), len(source.claim(2)), len(source.claim(2))]
        assert sizes == [2, 2, 1]
        write(tmp_path / "late.png")
        assert names(source.claim(2)) == ["late.png"]
        assert source.claim(2) == []


def test_unfinished_hidden_and_own_files_are_passed_over(tmp_path: Path) -> None:
    hostile.plant(tmp_path / "in")
    write(tmp_path / "in/_archive/2026-11-22/old.png")
    with FolderSource(tmp_path / "in", settle_s=0) as source:
        taken = {claim.file_name for claim in source.claim(1000)}
    assert not {name for name in taken if name.startswith(("_", "."))}
    assert not taken & {"writing.png.part", "notes.txt", "pipe.png", "folder.png"}
    assert taken == set(hostile.BROKEN) | set(hostile.SOUND) | set(hostile.PLANTED) | {"caf\\xe9.png"}


def test_a_growing_file_waits_until_it_rests(tmp_path: Path) -> None:
    still, growing = write(tmp_path / "still.png"), write(tmp_path / "growing.png")
    stop = threading.Event()

    def grow() -> None:
        with growing.open("ab") as file:
            while not stop.wait(0.02):
                file.write(b"x")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with FolderSource(tmp_path, settle_s=0.2) as source:
            assert names(source.claim(10)) == [still.name]
            assert source.claim(10) == []
            stop.set()
            writer.join()
            time.sleep(0.25)
            before = time.monotonic()
            assert names(source.claim(10)) == [growing.name]
            assert time.monotonic() - before < 0.15  # at rest for long enough already: no second look
    finally:
        stop.set()
        writer.join()


def test_an_old_date_brought_along_by_a_copy_is_not_taken_for_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "copied.png")
    os.utime(path, (0, 0))
    with FolderSource(tmp_path, settle_s=0.2) as source:
        before = time.monotonic()
        (claim,) = source.claim(1)
        assert time.monotonic() - before >= 0.2
    assert claim.modified_at == datetime(1970, 1, 1, tzinfo=UTC)


def test_two_lines_share_a_folder_without_overlap(tmp_path: Path) -> None:
    for index in range(30):
        write(tmp_path / f"{index}.png", seed=index)
    with FolderSource(tmp_path, settle_s=0) as one, FolderSource(tmp_path, settle_s=0) as two:
        first, second = [], []
        while mine := one.claim(4):
            first += mine
            second += two.claim(3)
    assert not set(names(first)) & set(names(second))
    assert len(first) + len(second) == 30


def test_a_file_that_vanishes_before_the_claim_is_no_error(tmp_path: Path) -> None:
    write(tmp_path / "a.png"), write(tmp_path / "b.png")
    with FolderSource(tmp_path, settle_s=0) as source:
        found = list(source._files())
        for name, path in found:
            if name == "a.png":
                Path(path).unlink()
        source._walk = iter(found)
        assert names(source.claim(10)) == ["b.png"]


def test_a_file_that_vanishes_after_the_claim_is_a_picture_error(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with FolderSource(tmp_path, settle_s=0) as source:
        (claim,) = source.claim(1)
        Path(claim.location).unlink()
        with pytest.raises(PictureError, match="No such file"):
            source.read(claim, limits=LIMITS)
        source.move(claim, destination=str(tmp_path / "_rejected/a.png"))


def test_a_namesake_waits_for_the_first_to_be_recorded(tmp_path: Path) -> None:
    write(tmp_path / "a.png", seed=1)
    with FolderSource(tmp_path, settle_s=0) as source:
        (first,) = source.claim(10)
        second_content = write(tmp_path / "a.png", seed=2).read_bytes()
        assert source.claim(10) == []
        source.move(first, destination=str(tmp_path / "_archive/a~1.png"))
        (second,) = source.claim(10)
        assert source.read(second, limits=LIMITS) == second_content


def _claim_and_die(folder: Path) -> None:
    FolderSource(folder, settle_s=0).claim(10)
    os._exit(9)


def test_claims_of_a_dead_line_are_taken_over_at_once(tmp_path: Path) -> None:
    original = write(tmp_path / "L1/a.png")
    original.with_suffix(".json").write_text("{}")
    line = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(tmp_path,))
    line.start()
    line.join()
    assert not original.exists()
    with FolderSource(tmp_path, settle_s=0) as source:
        (claim,) = source.claim(10)
        assert claim.file_name == "L1/a.png"
        assert source.sidecar(claim) == b"{}"
        assert source.claim(10) == []
        assert len(list((tmp_path / "_claimed").iterdir())) == 1


def test_claims_of_a_living_line_are_left_alone_even_when_it_is_slow(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with FolderSource(tmp_path, settle_s=0) as slow, FolderSource(tmp_path, settle_s=0, lease_s=0) as other:
        (claim,) = slow.claim(10)
        assert other.claim(10) == []
        assert slow.read(claim, limits=LIMITS)


def test_claims_of_another_machine_are_taken_over_after_the_lease(tmp_path: Path) -> None:
    abandoned = tmp_path / "_claimed" / "elsewhere-77-0a0b0c0d"
    write(abandoned / "L1/a.png")
    (abandoned / ".owner").touch()
    with FolderSource(tmp_path, settle_s=0, lease_s=60) as source:
        assert source.claim(10) == []
        os.utime(abandoned / ".owner", (time.time() - 61,) * 2)
        assert names(source.claim(10)) == ["L1/a.png"]
        assert source.claim(10) == []
    assert not abandoned.exists()


def test_closing_with_files_claimed_leaves_them_to_the_next_line(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with FolderSource(tmp_path, settle_s=0) as source:
        source.claim(1)
    (left,) = (tmp_path / "_claimed").iterdir()
    assert left.name.startswith(socket.gethostname())
    with FolderSource(tmp_path, settle_s=0) as source:
        assert names(source.claim(1)) == ["a.png"]


def test_a_released_file_is_there_for_any_line(tmp_path: Path) -> None:
    original = write(tmp_path / "L1/a.png")
    original.with_suffix(".json").write_text("{}")
    with FolderSource(tmp_path, settle_s=0) as source:
        (claim,) = source.claim(1)
        source.release(claim)
        assert original.exists()
        assert original.with_suffix(".json").exists()
        (claim,) = source.claim(1)
        write(original, seed=5)  # a namesake came meanwhile: nothing is overwritten, the claim stays
        source.release(claim)
        assert Path(claim.location).exists()


def test_kept_files_are_seen_once_and_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.png")
    with FolderSource(tmp_path / "in", settle_s=0, keep=True) as source:
        (claim,) = source.claim(10)
        assert source.claim(10) == []
        assert source.destination(claim, captured_at=NOON, sha256="0" * 64, rejected=True) == str(path)
        source.move(claim, destination=str(path))
    assert sorted(entry.name for entry in (tmp_path / "in").iterdir()) == ["a.png"]


def test_a_source_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntakeError, match="is no folder"):
        FolderSource(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(IntakeError):
        FolderSource(tmp_path / "file")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/_claimed").touch()
    with pytest.raises(IntakeError, match="--in-place"):
        FolderSource(tmp_path / "blocked")


def test_a_name_too_long_for_its_hash_is_shortened(tmp_path: Path) -> None:
    path = write(tmp_path / ("x" * 250 + ".png"))
    with FolderSource(tmp_path, settle_s=0) as source:
        (claim,) = source.claim(1)
        destination = source.destination(claim, captured_at=NOON, sha256="c" * 64, rejected=True)
        source.move(claim, destination=destination)
    assert Path(destination) == tmp_path / "_rejected/2026-11-22/cccccccccccc.png"
    assert Path(destination).is_file()
    assert not path.exists()


def test_a_broken_clock_moves_to_the_nearest_time_there_is() -> None:
    assert utc(1e15).year == 2099
    assert utc(-1e15).year == 1970


def test_a_large_folder_is_walked_without_holding_its_names(tmp_path: Path) -> None:
    import tracemalloc

    for index in range(3_000):
        (tmp_path / f"{index:05d}.png").touch()
    with FolderSource(tmp_path, settle_s=0, keep=True) as source:
        source.claim(10)
        tracemalloc.start()
        try:
            while source.claim(10):
                pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 200_000


# --- URLs


def test_a_url_is_read_in_place() -> None:
    memory = fsspec.filesystem("memory")
    content = hostile.encoded(hostile.surface(1))
    memory.pipe(
        {
            "/bucket/L1/a.png": content,
            "/bucket/L1/a.json": b'{"serial": "SN1"}',
            "/bucket/b.png": content,
            "/bucket/_archive/c.png": content,
            "/bucket/d.txt": b"",
        }
    )
    try:
        with open_source("memory://bucket") as source:
            assert isinstance(source, UrlSource)
            claims = source.claim(1) + source.claim(10)
            assert source.claim(10) == []
            assert names(claims) == ["L1/a.png", "b.png"]
            (claim,) = (claim for claim in claims if claim.file_name == "L1/a.png")
            assert source.read(claim, limits=LIMITS) == content
            assert source.sidecar(claim) == b'{"serial": "SN1"}'
            assert abs((datetime.now(UTC) - claim.modified_at).total_seconds()) < 60
            assert source.destination(claim, captured_at=NOON, sha256="", rejected=False) == "memory:///bucket/L1/a.png"
            memory.rm("/bucket/L1/a.png")
            with pytest.raises(PictureError, match="cannot be read"):
                source.read(claim, limits=LIMITS)
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_file_url_leaves_files_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / "L1/a.png")
    with open_source(f"file://{tmp_path}") as source:
        assert names(source.claim(10)) == ["L1/a.png"]
    assert path.exists()


@pytest.mark.parametrize("url", ["nosuch://bucket", "memory://absent/folder"])
def test_a_url_that_cannot_be_listed_is_refused(url: str) -> None:
    with pytest.raises(IntakeError), open_source(url) as source:
        source.claim(1)


# --- manifests


def test_a_manifest_says_which_parts_pictures_show(tmp_path: Path) -> None:
    for name in ("L1/S1/a.png", "L1/b.png", "L1/c.png", "d.png"):
        write(tmp_path / name)
    (tmp_path / "manifest.csv").write_text("file,serial,lot\nL1/b.png,far,\nd.png,SN4,LOT2\nL1/S1/a.png,SN1,LOT1\n")
    (tmp_path / "L1/manifest.csv").write_text(
        "\ufefffile;serial;captured_at;note\r\nb.png;SN2;2026-11-22T06:15:00Z;x\r\n"
    )
    (tmp_path / "L1/c.json").write_text('{"serial": "SN3"}')
    with FolderSource(tmp_path, settle_s=0) as source:
        found = {}
        for claim in source.claim(10):
            told = source.sidecar(claim)
            found[claim.file_name] = PathPattern("{serial}").identify(claim.file_name, modified_at=NOON, sidecar=told)
        (tmp_path / "L1/manifest.csv").write_text("file,serial\nb.png,SN9\n")  # written anew: read anew
        (again,) = (claim for claim in source.claim(10) or [Claim("L1/b.png", "nowhere/b.png", NOON)])
        assert source.sidecar(again) == b'{"serial": "SN9"}'
    assert {name: each.part.serial for name, each in found.items()} == {
        "L1/S1/a.png": "SN1",
        "L1/b.png": "SN2",
        "L1/c.png": "SN3",
        "d.png": "SN4",
    }
    assert (found["d.png"].part.lot, found["L1/b.png"].part.lot) == ("LOT2", "")
    assert found["L1/b.png"].captured_at == datetime(2026, 11, 22, 6, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the columns none"),
        (b"name,serial\na.png,1\n", "the columns name, serial"),
        (b"file,serial\na.png,1\na.png,2\n", "names a.png twice"),
        (b"file,serial\na.png,1\n./a.png,2\n", "names a.png twice"),
        (b"file,serial\n\xff\xfe,1\n", "no table"),
        (b'file,serial\n"a.png,1\n', "no table"),
        (b"x" * 20_000_000, "at most"),
    ],
)
def test_a_manifest_that_cannot_be_read_leaves_its_pictures_unknown(tmp_path: Path, content: bytes, words: str) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_bytes(content)
    with FolderSource(tmp_path, settle_s=0) as source:
        (claim,) = source.claim(10)
        with pytest.raises(PictureError, match=words):
            source.sidecar(claim)


def test_a_manifest_that_is_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "L1/a.png"), write(tmp_path / "L2/b.png")
    (tmp_path / "L1/manifest.csv").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "L2/manifest.csv")
    with FolderSource(tmp_path, settle_s=0) as source:
        for claim in source.claim(10):
            with pytest.raises(PictureError, match=r"symbolic link|no ordinary file"):
                source.sidecar(claim)


# --- bounds of what is said of a picture


FROM_SIDECAR = PathPattern("{line}/{serial}_{captured_at}")


def said(**fields: object) -> bytes:
    return json.dumps({"serial": "SN1"} | fields).encode()


@pytest.mark.parametrize("field", ["serial", "lot", "product", "line", "station", "camera", "view", "shift"])
def test_a_field_is_as_long_as_an_index_takes(field: str) -> None:
    told = FROM_SIDECAR.identify("a.png", modified_at=NOON, sidecar=said(**{field: "x" * 255}))
    assert "x" * 255 in (getattr(told, field, ""), getattr(told.part, field, ""))
    with pytest.raises(PictureError, match=f"{field} has 256 characters"):
        FROM_SIDECAR.identify("a.png", modified_at=NOON, sidecar=said(**{field: "x" * 256}))


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2J", "a\u202eb", "a\x00b", " ", "\u3000"])
def test_a_serial_that_is_blank_or_holds_control_characters_is_refused(text: str) -> None:
    with pytest.raises(PictureError, match="gives serial no text"):
        FROM_SIDECAR.identify("a.png", modified_at=NOON, sidecar=said(serial=text))


def test_null_in_a_sidecar_is_a_field_that_is_not_given() -> None:
    nothing = said(lot=None, captured_at=None)
    found = FROM_SIDECAR.identify("L1/SN7_20261122T061500Z.png", modified_at=NOON, sidecar=nothing)
    assert (found.part, found.line) == (Part("SN1"), "L1")
    assert found.captured_at == datetime(2026, 11, 22, 6, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    "bad", [{"captured_at": "22.11.2026 06:15:00"}, {"captured_at": "1970-01-01T00:00:00Z"}, {"lot": 7}]
)
def test_one_bad_field_of_a_sidecar_leaves_the_others(bad: dict[str, object]) -> None:
    content = said(product="tile", camera="C1", **bad)
    with pytest.raises(PictureError):
        FROM_SIDECAR.identify("L1/SN7_20261122T061500Z.png", modified_at=NOON, sidecar=content)
    found = FROM_SIDECAR.stand_in("L1/SN7_20261122T061500Z.png", modified_at=NOON, sidecar=content)
    assert (found.part, found.line, found.camera) == (Part("SN1", "tile"), "L1", "C1")
    assert (found.captured_at, found.known_from) == (datetime(2026, 11, 22, 6, 15, tzinfo=UTC), "sidecar")


def test_a_sidecar_that_says_nothing_right_leaves_the_path() -> None:
    for content in (b"{", b"[]", said(serial="x" * 256)):
        found = FROM_SIDECAR.stand_in("L1/SN7_20261122T061500Z.png", modified_at=NOON, sidecar=content)
        assert (found.part, found.line) == (Part("SN7"), "L1")


def test_control_characters_of_a_path_are_spelled_out() -> None:
    found = FROM_SIDECAR.identify("L1/SN\n\u202e7_20261122T061500Z.png", modified_at=NOON)
    assert found.part.serial == "SN\\n\\u202e7"
    with pytest.raises(PictureError, match="blank"):
        FROM_SIDECAR.identify(" .png", modified_at=NOON)


@pytest.mark.parametrize(
    ("time", "is_taken"),
    [
        ("1989-12-31T23:59:59Z", False),
        ("1990-01-01T00:00:00Z", True),
        ("0001-01-01T00:00:00+23:59", False),
        ("9999-12-31T23:59:59Z", False),
        ("9999-12-31T23:59:59-23:59", False),
        ("2099-01-01T00:00:00Z", False),
    ],
)
def test_a_stated_time_lies_between_1990_and_tomorrow(time: str, is_taken: bool) -> None:
    if is_taken:
        told = FROM_SIDECAR.identify("a.png", modified_at=NOON, sidecar=said(captured_at=time))
        assert told.captured_at == datetime.fromisoformat(time)
        return
    with pytest.raises(PictureError, match=r"a time from 1990-01-01|time with its zone"):
        FROM_SIDECAR.identify("a.png", modified_at=NOON, sidecar=said(captured_at=time))


def test_tomorrow_is_by_the_later_clock_of_machine_and_files() -> None:
    soon = datetime.now(UTC) + timedelta(hours=23)
    name = f"L1/SN1_{soon:%Y%m%dT%H%M%S}Z.png"
    assert FROM_SIDECAR.identify(name, modified_at=NOON).captured_at == soon.replace(microsecond=0)
    late = datetime.now(UTC) + timedelta(days=10)
    name = f"L1/SN1_{late:%Y%m%dT%H%M%S}Z.png"
    with pytest.raises(PictureError, match="set the camera's clock"):
        FROM_SIDECAR.identify(name, modified_at=NOON)
    assert FROM_SIDECAR.stand_in(name, modified_at=NOON).captured_at == NOON
    assert FROM_SIDECAR.identify(name, modified_at=late).captured_at == late.replace(microsecond=0)


def test_what_was_recorded_once_is_not_held_to_the_bounds_again() -> None:
    told = FROM_SIDECAR.identify(
        "a.png", modified_at=NOON, sidecar=said(captured_at="9999-01-01T00:00:00Z", lot="x" * 300), recorded=True
    )
    assert (told.captured_at.year, len(told.part.lot)) == (9999, 300)


def test_a_file_named_too_long_is_known_by_its_start_and_a_hash() -> None:
    found = by_file(f"{'x' * 300}.png", modified_at=NOON)
    assert found.part.serial.startswith("x" * 127 + "~")
    assert len(found.part.serial) == 140
    assert by_file(f"{'x' * 301}.png", modified_at=NOON).part != found.part


def test_names_are_composed_whatever_machine_wrote_them() -> None:
    found = FROM_SIDECAR.identify("Pru\u0308fling_1.png", modified_at=NOON)
    assert found.part.serial == "Pr\u00fcfling_1"


# --- what lies beside pictures


def serials(source: FolderSource | UrlSource, limit: int = 100) -> dict[str, str]:
    """Serial by file name of all a source holds, claimed a few at a time and put away, as a line does."""
    found: dict[str, str] = {}
    while claims := source.claim(limit):
        for claim in claims:
            try:
                told = source.sidecar(claim)
                identity = PathPattern("{serial}").identify(claim.file_name, modified_at=NOON, sidecar=told)
                found[claim.file_name] = identity.part.serial
            except PictureError as error:
                found[claim.file_name] = error.found
        for claim in claims:
            sha256 = hashlib.sha256(claim.file_name.encode()).hexdigest()
            place = source.destination(claim, captured_at=NOON, sha256=sha256, rejected=False)
            source.move(claim, destination=place)
    return found


def sidecar(path: Path, serial: str) -> Path:
    path.write_text(json.dumps({"serial": serial}))
    return path


def plant_sidecars(folder: Path) -> dict[str, str]:
    """Pictures whose sidecars are named as machines name them, and the serial that each says."""
    for number, (picture, beside) in enumerate(
        {
            "P1.PNG": "P1.JSON",
            "P2.png": "P2.Json",
            "P3.png": "P3.png.json",
            "P4.jpg": "P4.jpg.JSON",
            "Pru\u0308f.png": "Pr\u00fcf.json",
            "\u00d6l.png": "O\u0308l.png.json",
        }.items()
    ):
        write(folder / picture, seed=number)
        sidecar(folder / beside, f"SN{number}")
    return {
        "P1.PNG": "SN0",
        "P2.png": "SN1",
        "P3.png": "SN2",
        "P4.jpg": "SN3",
        "Pru\u0308f.png": "SN4",
        "\u00d6l.png": "SN5",
    }


@pytest.mark.parametrize("kind", ["folder", "kept", "url"])
def test_sidecars_are_found_however_a_machine_names_them(tmp_path: Path, kind: str) -> None:
    expected = plant_sidecars(tmp_path)
    url = f"file://{tmp_path}" if kind == "url" else str(tmp_path)
    with open_source(url, settle_s=0, keep=kind == "kept") as source:
        assert serials(source) == expected
        assert source.strays() == []
    if kind == "folder":
        archived = sorted(path.name for path in (tmp_path / "_archive/2026-11-22").iterdir())
        assert len(archived) == 12
        assert sum(name.endswith(".json") for name in archived) == 6


@pytest.mark.parametrize("name", ["MANIFEST.CSV", "Manifest.csv", "Manifest.Csv", "mAnIfEsT.CsV"])
@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_manifest_is_read_in_capitals_and_in_any_normal_form(tmp_path: Path, name: str, kind: str) -> None:
    write(tmp_path / "L1/Pru\u0308fling_1.png")
    (tmp_path / name).write_text("file,serial\nL1/Pr\u00fcfling_1.png,SN42\n", encoding="utf-8")
    with open_source(f"file://{tmp_path}" if kind == "url" else str(tmp_path), settle_s=0) as source:
        assert serials(source) == {"L1/Pru\u0308fling_1.png": "SN42"}
        assert source.strays() == []


@pytest.mark.parametrize("limit", [1, 10])
@pytest.mark.parametrize("kind", ["folder", "kept", "url"])
def test_a_sidecar_of_two_pictures_is_nobodys(tmp_path: Path, kind: str, limit: int) -> None:
    for number, name in enumerate(("a.jpg", "a.png", "b.png")):
        write(tmp_path / name, seed=number)
    sidecar(tmp_path / "a.json", "TRUE"), sidecar(tmp_path / "b.json", "SNB")
    url = f"file://{tmp_path}" if kind == "url" else str(tmp_path)
    with open_source(url, settle_s=0, keep=kind == "kept") as source:
        told = serials(source, limit)
    shared = "one sidecar lies beside 2 pictures: a.jpg, a.png"
    assert told == {"a.jpg": shared, "a.png": shared, "b.png": "SNB"}


@pytest.mark.parametrize("kind", ["folder", "kept", "url"])
def test_a_sidecar_in_another_case_is_found_where_only_one_picture_may_be_meant(tmp_path: Path, kind: str) -> None:
    pictures = ("P2.png", "L1/P3.PNG", "a.png", "A.png", "b.jpg", "B.PNG", "c.png", "C.png", "Dd.png")
    for number, name in enumerate(pictures):
        write(tmp_path / name, seed=number)
    for name, serial in {
        "p2.json": "SN2",
        "L1/P3.png.JSON": "SN3",
        "a.json": "SNA",  # of a.png by its very name
        "b.jSoN": "SNB",
        "c.json": "SNC",
        "C.JSON": "SNC2",
        "dd.json": "SND",
        "DD.json": "SNDD",
        "none.json": "SN9",
    }.items():
        sidecar(tmp_path / name, serial)
    url = f"file://{tmp_path}" if kind == "url" else str(tmp_path)
    with open_source(url, settle_s=0, keep=kind == "kept") as source:
        assert serials(source, 2) == {
            "P2.png": "SN2",
            "L1/P3.PNG": "SN3",
            "a.png": "SNA",
            "A.png": "A",
            "b.jpg": "one sidecar lies beside 2 pictures: B.PNG, b.jpg",
            "B.PNG": "one sidecar lies beside 2 pictures: B.PNG, b.jpg",
            "c.png": "SNC",
            "C.png": "SNC2",
            "Dd.png": "2 sidecars may be the picture's: DD.json, dd.json",
        }
        assert set(source.strays()) - {"DD.json", "dd.json"} == {"none.json"}
    if kind == "folder":  # what was guessed of nobody stays and is reported
        assert sorted(path.name for path in tmp_path.glob("*.json")) == ["DD.json", "dd.json", "none.json"]


def test_a_sidecar_that_comes_after_the_folder_was_listed_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with FolderSource(tmp_path, settle_s=0) as source:
        assert serials(source) == {"a.png": "a"}
        write(tmp_path / "P2.png"), sidecar(tmp_path / "p2.json", "SN2")
        assert serials(source) == {"P2.png": "SN2"}


def test_a_sidecar_in_another_case_stays_with_its_picture_when_a_line_dies(tmp_path: Path) -> None:
    left = tmp_path / "_claimed/elsewhere-1-0a0b0c0d"
    write(left / "P2.png"), sidecar(left / "p2.json", "SN2"), sidecar(left / "p3.json", "SN3")
    write(tmp_path / "_archive/2026-11-22/P3~0123456789ab.png")
    (left / ".owner").touch()
    os.utime(left / ".owner", (1, 1))
    with FolderSource(tmp_path, settle_s=0) as source:
        assert serials(source) == {"P2.png": "SN2"}
    assert (tmp_path / "_archive/2026-11-22/P3~0123456789ab.json").is_file()


def test_each_of_two_pictures_with_a_sidecar_of_its_own_is_known(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", seed=1), write(tmp_path / "a.png", seed=2)
    sidecar(tmp_path / "a.jpg.json", "SN1"), sidecar(tmp_path / "a.json", "SN2")
    with FolderSource(tmp_path, settle_s=0) as source:
        assert serials(source, 1) == {"a.jpg": "SN1", "a.png": "SN2"}


def test_sidecars_and_tables_of_no_picture_are_told(tmp_path: Path) -> None:
    write(tmp_path / "L1/a.png")
    (tmp_path / "manifest.csv").write_text("file,serial\n")
    for name in ("L1/late.json", "L1/a.jpg.json", "parts.CSV", "_own.json", "@eaDir/x.json", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = ["L1/a.jpg.json", "L1/late.json", "parts.CSV"]
    with FolderSource(tmp_path, settle_s=0) as source:
        assert source.strays() == expected
        assert serials(source) == {"L1/a.png": "a"}
        assert source.strays() == expected
    with FolderSource(tmp_path, settle_s=0, ignore=["*.CSV", "L?"]) as source:
        assert source.strays() == []
    write(tmp_path / "L1/a.png")
    with UrlSource(f"file://{tmp_path}") as source:
        assert serials(source) == {"L1/a.png": "a"}
        assert source.strays() == expected


def _dies_at(folder: Path, rename: int) -> None:
    """Claim, record and put away, but die before the n-th rename."""
    renames = 0

    def counting(event: str, _arguments: object) -> None:
        nonlocal renames
        renames += event == "os.rename"
        if renames == rename:
            os._exit(9)

    sys.addaudithook(counting)
    with FolderSource(folder, settle_s=0) as source:
        serials(source)


@pytest.mark.parametrize("rename", range(1, 6))
def test_picture_and_sidecar_stay_together_whenever_a_line_dies(tmp_path: Path, rename: int) -> None:
    write(tmp_path / "in/L1/a.png")
    sidecar(tmp_path / "in/L1/a.json", "TRUE")
    line = multiprocessing.get_context("spawn").Process(target=_dies_at, args=(tmp_path / "in", rename))
    line.start()
    line.join()
    assert line.exitcode == 9
    with FolderSource(tmp_path / "in", settle_s=0) as source:
        assert set(serials(source).items()) <= {("L1/a.png", "TRUE")}
        assert source.claim(10) == []
    files = sorted(path.name for path in (tmp_path / "in").rglob("a*") if path.is_file())
    assert len(files) == 2
    assert files[0].startswith("a~")
    assert files[1] == files[0].replace(".json", ".png")
    assert list((tmp_path / "in/_claimed").rglob("a*")) == []


def test_what_half_opened_lines_left_is_swept(tmp_path: Path) -> None:
    left, young = tmp_path / "_claimed/.new-0a0b0c0d", tmp_path / "_claimed/.new-01020304"
    for folder in (left, young):
        folder.mkdir(parents=True)
        (folder / ".owner").touch()
    os.utime(left, (time.time() - 61,) * 2)
    with FolderSource(tmp_path, settle_s=0) as source:
        source.claim(1)
        assert (left.exists(), young.exists()) == (False, True)


def test_a_hard_link_from_the_archive_is_put_away_once(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with FolderSource(tmp_path, settle_s=0) as source:
        serials(source)
        (archived,) = (tmp_path / "_archive").rglob("a~*.png")
        (tmp_path / "a.png").hardlink_to(archived)
        assert serials(source) == {"a.png": "a"}
        assert source.claim(10) == []
    assert archived.is_file()
    assert [path.name for path in tmp_path.rglob("*.png")] == [archived.name]


def test_an_archive_on_another_file_system_gets_a_copy(tmp_path: Path) -> None:
    far = Path("/dev/shm")  # noqa: S108  a file system of its own
    if not far.is_dir() or far.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system to write to")
    path = write(tmp_path / "in/L1/a.png")
    os.utime(path, (1e9, 1e9))
    content = path.read_bytes()
    sidecar(tmp_path / "in/L1/a.json", "TRUE")
    (tmp_path / "in/link.png").symlink_to("/nowhere")
    with tempfile.TemporaryDirectory(dir=far) as elsewhere:
        (tmp_path / "in/_archive").symlink_to(elsewhere)
        with FolderSource(tmp_path / "in", settle_s=0) as source:
            assert serials(source) == {"L1/a.png": "TRUE", "link.png": "link"}
        kept = {path.name.split("~")[0] + path.suffix: path for path in Path(elsewhere).rglob("*~*")}
        assert set(kept) == {"a.png", "a.json", "link.png"}
        assert kept["a.png"].read_bytes() == content
        assert kept["a.png"].stat().st_mtime == 1e9
        assert kept["link.png"].readlink() == Path("/nowhere")
        assert list(Path(elsewhere).rglob("*.part")) == []
    assert list((tmp_path / "in/_claimed").iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_what_systems_keep_beside_pictures_is_passed_over(tmp_path: Path, kind: str) -> None:
    for number, name in enumerate(
        (
            "L1/a.png",
            "L1/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
            "#recycle/b.png",
            "$RECYCLE.BIN/S-1-5-21/$R1.png",
            "System Volume Information/c.png",
            "lost+found/d.png",
            "~snapshot/hourly.0/e.png",
            ".@__thumb/f.png",
            "preview/g.png",
            "L1/h_preview.png",
            "#3/i.png",
        )
    ):
        write(tmp_path / name, seed=number)
    location = f"file://{tmp_path}" if kind == "url" else str(tmp_path)
    with open_source(location, settle_s=0, ignore=["preview", "*_preview.png"]) as source:
        assert set(serials(source)) == {"L1/a.png", "#3/i.png"}


def test_a_name_of_255_bytes_is_taken_once(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 251 + ".png")), write(tmp_path / "ok.png", seed=1)
    with FolderSource(tmp_path, settle_s=0) as source:
        assert serials(source) == {"x" * 251 + ".png": "x" * 251, "ok.png": "ok"}
        assert source.claim(10) == []
