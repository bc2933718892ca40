"""JPEG or PNG files in, classes out, with a program of pixels: python classify_image.py build/digits image.jpg ...

    qcompile models/digits_resnet.onnx --calib models/digits_calib.npz --input u8 --layout nhwc --output argmax -o build/digits

Needs numpy, Pillow and the runtime (`qcompiler`, or a wheel made by `qcompile package`). No float is computed anywhere: Pillow decodes and
scales bytes, the program does the rest.
"""

import sys

import numpy as np
from PIL import Image

import qcompiler


def pixels(path: str, height: int, width: int, channels: int) -> np.ndarray:
    """The image at the size that the program takes, as one sample of bytes."""
    with Image.open(path) as image:
        sized = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    return np.asarray(sized, np.uint8).reshape(1, height, width, channels)


def main(folder: str, *paths: str) -> None:
    """Print the class of each file."""
    program = qcompiler.load(folder)
    (source,), (answer,) = program.inputs, program.outputs
    for path in paths:
        print(int(program.run_integer({source.name: pixels(path, *source.shape[1:])})[answer.name].item()), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
