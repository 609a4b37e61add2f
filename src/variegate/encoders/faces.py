"""Faces cut out of pictures, by OpenCV's detector from a file that the user names.

The most common complaint of all is one face everywhere, and a whole picture's features drown it.
The file is `face_detection_yunet_*.onnx` of github.com/opencv/opencv_zoo (MIT).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from variegate.errors import EncoderError

SURE = 0.7  # the detector's score
SIDE = 640  # pixels of the longer side at which faces are looked for
ROOM = 1.3  # times the face's own box: hair and chin belong to it


@runtime_checkable
class FaceFinder(Protocol):
    def largest(self, picture: Image.Image) -> Image.Image | None:
        """The largest face, square, with a little room; None where there is none."""
        ...


class YuNet:
    """Wu et al. 2023, A Tiny Millisecond-level Face Detector, through `cv2.FaceDetectorYN`."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector

    def largest(self, picture: Image.Image) -> Image.Image | None:
        whole = picture.convert("RGB")
        scale = SIDE / max(whole.size)
        size = tuple(max(32, round(side * scale)) for side in whole.size)
        small = whole.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        self._detector.setInputSize(size)
        _, found = self._detector.detect(np.asarray(small)[..., ::-1].copy())  # as BGR
        if found is None or len(found) == 0:
            return None
        x, y, width, height = max((row[:4] for row in found), key=lambda box: box[2] * box[3])
        half = ROOM * max(width, height) / 2 / scale
        centre = ((x + width / 2) / scale, (y + height / 2) / scale)
        box = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
        left, top, right, bottom = (round(float(edge)) for edge in box)
        return whole.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def load_faces(file: Path) -> YuNet:
    """Raises: EncoderError when OpenCV is not installed or the file is no such detector."""
    try:
        import cv2
    except ImportError as error:
        raise EncoderError(
            "finding faces wants OpenCV, which is not installed: pip install opencv-python-headless"
        ) from error
    if not file.is_file():
        raise EncoderError(
            f"no face detector at {str(file)!r}; expected face_detection_yunet_2023mar.onnx (or"
            " 2026may with OpenCV 5) from github.com/opencv/opencv_zoo"
        )
    try:
        return YuNet(cv2.FaceDetectorYN.create(str(file), "", (SIDE, SIDE), SURE))
    except cv2.error as error:
        raise EncoderError(
            f"{file} cannot be read as a face detector; expected face_detection_yunet_2023mar.onnx"
            " (or 2026may with OpenCV 5) from github.com/opencv/opencv_zoo"
        ) from error
