"""`nrd-trt video` as its user sees it: exact files, plain errors, an end that leaves something to play."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import nrd_trt
from nrd_trt.cli.main import app
from nrd_trt.data.images import read_image
from nrd_trt.data.overlay import CONFIDENCE_PALETTE, write_mask, write_rgb
from nrd_trt.data.synthetic import street_clip
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError, VideoError
from nrd_trt.runtime.engine import Engine, open_bundle
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.video.frames import SegmentedFrame
from nrd_trt.video.overlay import OverlayStyle, Painter
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.sinks.mp4 import Mp4Sink
from nrd_trt.video.sources.open_source import open_source
from tests.artefacts import bundle, checkpoint, environment, workspace
from tests.serving.waiting import until
from tests.video.clips import street_frames, write_clip, write_damaged_clip
from tests.video.test_mp4 import read, shown
from tests.warm.programs import command_line, python

FRAMES = 12
SIZE_HW = (60, 90)


@pytest.fixture(scope="module")
def clip() -> Path:
    """A drawn street at 29.97 frames per second."""
    path = workspace() / "clip.mp4"
    if not path.exists():
        write_clip(path, street_frames(FRAMES, SIZE_HW), rate=Fraction(30000, 1001))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Frames and labels of a drawn street."""
    folder = tmp_path / "street"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index, scene in enumerate(street_clip(3, SIZE_HW, frames=6)):
        write_rgb(folder / "images" / f"f{index:02}.png", scene.image)
        write_mask(folder / "labels" / f"f{index:02}.png", scene.label, [(0, 0, 0)])
    return folder


def video(*arguments: object, output: str = "mask") -> Any:
    words = ["video", *map(str, arguments), "--bundle", str(bundle(output=output)), "--runner", "onnxruntime"]
    return CliRunner().invoke(app, [*words, "--threads", "1"])


def facts(*arguments: object, output: str = "mask") -> dict[str, Any]:
    result = video(*arguments, "--json", output=output)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def check_same_frames(source: Path, target: Path) -> int:
    """Number, rate, size, times and durations of the frames; return the number."""
    (before, _), (after, written) = read(source), read(target)
    assert (after.rate, after.size_hw) == (before.rate, before.size_hw)
    assert shown(target) == shown(source)
    return len(written)


def test_a_clip_comes_out_with_its_frames_rate_and_size_and_with_the_right_masks(tmp_path: Path, clip: Path) -> None:
    found = facts(clip, "-o", tmp_path / "out.mp4", "-o", tmp_path / "masks")
    assert check_same_frames(clip, tmp_path / "out.mp4") == FRAMES
    masks = sorted((tmp_path / "masks").iterdir())
    with open_bundle(bundle(), runner="onnxruntime", threads=1) as predictor, open_source(str(clip)) as frames:
        for path, frame in zip(masks, frames, strict=True):
            with Image.open(path) as image:
                np.testing.assert_array_equal(np.asarray(image), predictor.predict(frame.rgb))
    assert found == {
        "frames": FRAMES,
        "dropped": 0,
        "reconnects": 0,
        "complete": True,
        "decoded_on": "cpu",
        "size": "60x90",
        "source_fps": pytest.approx(30000 / 1001),
        "smoothing": {"name": "none", "lag_frames": 0},
        "labels": None,
        "outputs": [str(tmp_path / "out.mp4"), str(tmp_path / "masks")],
        "notes": [],
        "runner": "onnxruntime",
        "arithmetic": "native",
        "plan_ran": None,
        **{name: found[name] for name in ("fps", "flicker", "flicker_unsmoothed", "split_ms", "latency_ms")},
    }
    assert found["fps"] > 0
    assert list(found["split_ms"]) == ["read", "preprocess", "infer", "smooth", "draw", "write"]
    assert list(found["latency_ms"]) == ["p50", "p90", "p99"]
    assert 0 <= found["flicker"] == found["flicker_unsmoothed"] <= 1


def test_the_confidence_is_drawn_where_the_engine_gives_it(tmp_path: Path, labelled: Path) -> None:
    images, sure = labelled / "images", "mask,confidence"
    drawn = ("--view", "confidence", "--opacity", 1)
    assert facts(images, "-o", f"overlays:{tmp_path / 'out'}", *drawn, output=sure)["frames"] == 6
    with open_bundle(bundle(output=sure), threads=1) as engine:
        for path, image in zip(sorted((tmp_path / "out").iterdir()), sorted(images.iterdir()), strict=True):
            confidence = engine.segment(read_image(image)).confidence
            np.testing.assert_array_equal(read_image(path), np.array(CONFIDENCE_PALETTE)[confidence])
    for output, more, message in (
        ("mask", (), "--view confidence: expected an engine with the output confidence, got one with mask"),
        (sure, ("--legend",), "--view confidence: expected no --legend, which is about colours of classes"),
        (sure, ("--show", "Car"), "--view confidence: expected no --show, which is about colours of classes"),
    ):
        refused = video(images, "-o", tmp_path / "refused.mp4", *drawn, *more, output=output)
        assert refused.exit_code == 2 and message in refused.stderr, refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "street"]


def test_from_python_it_is_a_function_with_a_typed_result(tmp_path: Path, labelled: Path) -> None:
    notices: list[str] = []
    result = nrd_trt.segment_video(
        labelled, [tmp_path / "out.mp4", "null"], bundle(), rate=25, labels=labelled / "labels", ignore_index=3,
        style=OverlayStyle(view="mask"), threads=1, progress=False, on_notice=notices.append,
    )  # fmt: skip
    assert (result.frames, result.dropped, result.complete, result.size_hw) == (6, 0, True, SIZE_HW)
    assert result.labels is not None and result.labels.frames == 6
    assert result.to_dict()["labels"] == asdict(result.labels)
    assert set(result.to_dict()) == set(facts(labelled, "-o", "null"))
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert read(tmp_path / "out.mp4")[0].rate == 25
    assert notices == []
    with pytest.raises(ConfigError, match=r"rate=0: expected frames per second above 0"):
        nrd_trt.segment_video(labelled, "null", bundle(), rate=0)
    with pytest.raises(ConfigError, match=rf"sinks='page': .*nrd_trt.serve\('{labelled}', '.*\.nrd'\)"):
        nrd_trt.segment_video(labelled, "page", bundle())


def test_the_real_clip(tmp_path: Path, camvid: Path) -> None:
    source = camvid / "val_0016E5_15fps.mp4"
    if not source.is_file():
        pytest.skip(f"no {source.name} beside the CamVid folders")
    facts(source, "-o", tmp_path / "out.mp4")
    assert check_same_frames(source, tmp_path / "out.mp4") == 101


def test_a_folder_plays_at_the_rate_asked_for_and_keeps_names(tmp_path: Path, labelled: Path) -> None:
    Image.fromarray(street_frames(1, SIZE_HW)[0]).save(labelled / "images" / "f00.jpg")  # the stem of another
    facts(
        labelled,
        "-o",
        tmp_path / "out.mp4",
        "-o",
        tmp_path / "masks",
        "--rate",
        "30000/1001",
        "--overlay",
        "--fit",
        "letterbox",
    )
    written, frames = read(tmp_path / "out.mp4")
    assert (written.rate, len(frames)) == (Fraction(30000, 1001), 7)
    names = sorted(path.name for path in (tmp_path / "masks").iterdir())
    assert names[:5] == ["f00.jpg.png", "f00.jpg_overlay.png", "f00.png.png", "f00.png_overlay.png", "f01.png"]


def test_labels_give_miou_with_and_without_smoothing(tmp_path: Path, labelled: Path) -> None:
    found = facts(labelled, "-o", "null", "--labels", labelled / "labels", "--smooth", "hysteresis:2")
    assert found["labels"]["frames"] == 6
    assert 0 < found["labels"]["miou_unsmoothed"] <= 1
    assert 0 < found["labels"]["miou"] <= 1
    assert found["smoothing"] == {"name": "hysteresis:2", "lag_frames": 1}
    without = facts(labelled, "-o", "null", "--labels", labelled / "labels")
    assert without["labels"]["miou"] == without["labels"]["miou_unsmoothed"] == found["labels"]["miou_unsmoothed"]
    text = video(labelled, "-o", "null", "--labels", labelled / "labels").stdout
    assert f"mIoU {without['labels']['miou']:.4f} on 6 labelled frames" in text
    assert "(stages run at the same time; frames decoded on the CPU)" in text


def test_labels_of_a_clip_go_by_order_where_names_do_not_fit(tmp_path: Path, labelled: Path, clip: Path) -> None:
    frames = [scene.image for scene in street_clip(3, SIZE_HW, frames=6)]
    by_name = facts(labelled, "-o", "null", "--labels", labelled / "labels")["labels"]
    for name, codec, pix_fmt in (("in.mp4", "libx264rgb", "rgb24"), ("in.mkv", "ffv1", "bgr0")):
        options = {"qp": "0"} if codec == "libx264rgb" else {}  # Matroska tells no number of frames
        source = write_clip(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, options=options)
        assert facts(source, "-o", "null", "--labels", labelled / "labels")["labels"] == by_name
    (labelled / "labels" / "f05.png").unlink()
    for other, count in ((source, 6), (clip, FRAMES)):
        found = facts(other, "-o", "null", "--labels", labelled / "labels")
        assert (found["labels"]["frames"], found["labels"]["miou"]) == (0, None)
        assert f"as many as the {count} frames, got 5" in found["notes"][0]


def test_ema_runs_on_a_bundle_with_logits_and_on_a_checkpoint_in_pytorch(tmp_path: Path, clip: Path) -> None:
    assert facts(clip, "-o", "null", "--smooth", "ema", output="both")["frames"] == FRAMES
    words = ["video", clip, "-o", "null", "--bundle", checkpoint(), "--smooth", "ema", "--json"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["runner"] == "torch"
    refused = CliRunner().invoke(app, [*map(str, words), "--runner", "onnxruntime"])
    assert refused.exit_code == 2
    assert "build a bundle for other runners: nrd-trt build " in refused.stderr


def test_views_and_style_change_the_picture(tmp_path: Path, clip: Path) -> None:
    pictures = {}
    for name, options in {
        "overlay": [],
        "clear": ["--opacity", "0"],
        "mask": ["--view", "mask"],
        "legend": ["--legend", "--contours"],
        "road": ["--show", "Road,Sky"],
        "other": ["--palette", "generated"],
    }.items():
        facts(clip, "-o", f"overlays:{tmp_path / name}", *options)
        with Image.open(tmp_path / name / "000000.png") as image:
            pictures[name] = np.asarray(image)
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    facts(clip, "-o", tmp_path / "side.mp4", "--view", "side")
    assert read(tmp_path / "side.mp4")[0].size_hw == (SIZE_HW[0], 2 * SIZE_HW[1])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["63"], "expected at least one of NAME.mp4"),
        (["{clip}", "-o", "{tmp}/a.mp4", "-o", "{tmp}/empty/../a.mp4"], "given more than once"),
        (["{clip}", "-o", "masks:{tmp}/a", "-o", "overlays:{tmp}/a"], "with --overlay"),
        (["{clip}", "-o", "{clip}", "--force"], "would replace what is read"),
        (["{tmp}/empty", "-o", "masks:{tmp}/empty", "--force"], "would replace what is read"),
        (["{clip}", "-o", ""], "expected NAME.mp4"),
        (["{clip}", "-o", "null", "--show", "²"], "²"),
        (["{clip}", "-o", "null", "--smooth", "ema"], "--smooth ema: expected an engine that gives logits"),
        (["{clip}", "-o", "null", "--rate", "slow"], "--rate 'slow': expected frames per second such as 25"),
        (["{clip}", "-o", "null", "--labels", "/nowhere"], "expected a folder of index PNGs"),
        (["{clip}", "-o", "page:8080"], "a web page is served by nrd-trt serve {clip} --bundle "),
    ],
)
def test_bad_input_ends_with_2_and_a_line(tmp_path: Path, clip: Path, arguments: list[str], text: str) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = video(*[word.format(clip=clip, tmp=tmp_path) for word in arguments])
    assert result.exit_code == 2, result.output
    assert text.format(clip=clip) in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_outputs_are_replaced_with_force_only_and_never_while_they_are_read(tmp_path: Path, clip: Path) -> None:
    target, left = tmp_path / "a.mp4", tmp_path / "a.partial.mp4"
    left.write_bytes(clip.read_bytes())  # by a run that failed
    assert video(left, "-o", target, "--force").exit_code == 2
    assert left.read_bytes() == clip.read_bytes()
    facts(left, "-o", tmp_path / "b.mp4")
    target.write_text("....ftyp, precious")
    result = video(clip, "-o", target)
    assert (result.exit_code, target.read_text()) == (2, "....ftyp, precious")
    assert "give --force" in result.stderr
    facts(clip, "-o", target, "--force")
    assert check_same_frames(clip, target) == FRAMES


@pytest.fixture(scope="module")
def long_clip() -> Path:
    path = workspace() / "long.mp4"
    if not path.exists():
        write_clip(path, street_frames(4000, SIZE_HW), rate=25)
    return path


def test_being_stopped_leaves_a_file_that_plays(tmp_path: Path, long_clip: Path) -> None:
    """SIGTERM is taken for Ctrl-C."""
    command = command_line("video", long_clip, "-o", tmp_path / "out.mp4", "--json", "--bundle", bundle())
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    until(lambda: (tmp_path / "out.partial.mp4").exists(), 60)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    found = json.loads(stdout)
    assert (found["complete"], list(tmp_path.iterdir())) == (False, [tmp_path / "out.mp4"])
    written, frames = read(tmp_path / "out.mp4")
    assert len(frames) == found["frames"] > 0
    assert written.rate == 25


def test_a_run_that_fails_says_where_and_keeps_what_was_written(tmp_path: Path) -> None:
    source, notices = write_damaged_clip(tmp_path / "in.avi"), list[str]()
    with pytest.raises(VideoError, match="expected frame 12, found damaged data"):
        nrd_trt.segment_video(source, tmp_path / "out.mp4", bundle(), threads=1, on_notice=notices.append)
    assert re.fullmatch(r"stopped in the stage read after \d+ frames written", notices[0])
    assert notices[1:] == [f"{tmp_path}/out.partial.mp4: holds the frames up to the failure."]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.avi", "out.partial.mp4"]


ON_A_FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from nrd_trt.cli.main import main
main()
"""


def test_a_disk_that_fills_keeps_what_was_written(tmp_path: Path, long_clip: Path) -> None:
    arguments = ("video", long_clip, "-o", tmp_path / "out.mp4", "--bundle", bundle(), "--view", "side")
    command = [python(), "-c", ON_A_FULL_DISK, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert result.returncode == 2, result.stderr
    assert "check its folder and the free space" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial.mp4"]


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Of everything but the engine, which a constant mask stands for."""
    source = write_clip(tmp_path / "in.mp4", street_frames(3000, (32, 48)), rate=25)
    seen: dict[int, float] = {}

    class Watched(Mp4Sink):
        """Notes the resident memory of this process."""

        def write(self, frame: SegmentedFrame) -> None:
            super().write(frame)
            if frame.frame.index % 50 == 0:
                status = Path("/proc/self/status").read_text()
                seen[frame.frame.index] = int(status.partition("VmRSS:")[2].split()[0]) / 1024

    class Constant(nullcontext[None]):
        name, arithmetic = "constant", "native"

        def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"mask": np.zeros(feed["image"].shape[:3], np.uint8)}

    engine = Engine(Constant(), read_bundle(bundle()).graph)  # type: ignore[arg-type]
    sink = Watched(tmp_path / "out.mp4", force=False, report=print)
    with EngineThread(engine) as thread:
        Pipeline(open_source(str(source)), thread, [sink], paint=Painter(engine.info, OverlayStyle())).run()
    early = max(mib for frame, mib in seen.items() if 500 <= frame < 1200)
    late = max(mib for frame, mib in seen.items() if frame >= 2400)
    assert late - early < 8, (early, late)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].frames == 3000
