"""Faces are cut out where they are; the detector itself is the user's file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from variegate.encoders.faces import YuNet, load_faces
from variegate.errors import EncoderError


class Detector:
    """Says that the bright part of the picture is a face, and a dim spot a smaller one."""

    def setInputSize(self, size: tuple[int, int]) -> None:
        self.size = size

    def detect(self, bgr: np.ndarray) -> tuple[int, np.ndarray | None]:
        assert bgr.shape[:2] == self.size[::-1]
        y, x = np.nonzero(bgr[..., 2] > 200)  # red, since BGR
        if len(x) == 0:
            return 0, None
        large = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1, *[0] * 10, 0.9]
        return 1, np.array([[1, 1, 4, 4, *[0] * 10, 0.99], large], np.float32)


def test_the_largest_face_is_cut_with_a_little_room() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[20:60, 120:160] = (255, 0, 0)
    face = YuNet(Detector()).largest(Image.fromarray(pixels))
    assert face is not None
    assert face.size == pytest.approx((52, 52), abs=1)
    share = (np.asarray(face)[..., 0] > 0).mean()
    assert share == pytest.approx(1 / 1.3**2, abs=0.04)


def test_a_picture_without_a_face_gives_none() -> None:
    assert YuNet(Detector()).largest(Image.new("RGB", (64, 64))) is None


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EncoderError, match="pip install opencv-python-headless"):
        load_faces(tmp_path / "x.onnx")

    def refuse(*_: Any) -> None:
        raise ValueError("not an ONNX")

    fake = SimpleNamespace(FaceDetectorYN=SimpleNamespace(create=refuse), error=ValueError)
    monkeypatch.setitem(sys.modules, "cv2", fake)
    with pytest.raises(EncoderError, match="no face detector at"):
        load_faces(tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(EncoderError, match="cannot be read as a face detector"):
        load_faces(tmp_path / "x.onnx")
