"""WAV files in, words out, with a program of speech features: python classify_sound.py build/keywords one.wav two.wav ...

    qcompile keywords.onnx --calib features.npz -o build/keywords

Needs numpy and the runtime (`qcompiler`, or a wheel made by `qcompile package`). The network is one for the features of MLPerf Tiny's keyword
spotting (Banbury et al. 2021, "MLPerf Tiny Benchmark", section 4.1), which are computed here, for one second x of 16000 samples:

    X_t[f] = | sum_n h_n x_{320 t + n} e^(-2 pi i f n / 512) |      h the Hann window of 480 samples, t = 0 .. 48
    m_t[b] = log(sum_f M_fb X_t[f] + 1e-6)                          M: 40 triangles, evenly spaced in mel from 20 to 4000 Hz
    c_t[k] = sqrt(2 / 40) sum_b m_t[b] cos(pi k (2 b + 1) / 80)     k = 0 .. 9
"""

import sys
import wave

import numpy as np

import qcompiler

RATE, FRAME, STEP, FFT = 16000, 480, 320, 512
BANDS, LOWEST, HIGHEST, COEFFICIENTS = 40, 20.0, 4000.0, 10
FLOOR = 1e-6
WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "(silence)", "(unknown)")


def samples(path: str) -> np.ndarray:
    """The first second of a file of 16-bit samples at 16 kHz, its first channel, the loudest sample being 1."""
    with wave.open(path) as file:
        if (file.getframerate(), file.getsampwidth()) != (RATE, 2):
            found = f"{8 * file.getsampwidth()} bits at {file.getframerate()} Hz"
            raise SystemExit(f"'{path}' has {found}, expected 16 bits at {RATE} Hz: convert it, for example by sox {path} -r {RATE} -b 16 out.wav")
        read = np.frombuffer(file.readframes(RATE), "<i2").reshape(-1, file.getnchannels())[:, 0]
    second = np.pad(read.astype(np.float64), (0, RATE - len(read)))
    return second / max(np.abs(second).max(), 1.0)


def mel(frequency: np.ndarray) -> np.ndarray:
    """The pitch that is heard: 1127 log(1 + f / 700)."""
    return 1127 * np.log1p(frequency / 700)


def triangles() -> np.ndarray:
    """[frequencies, bands]: each rises from the centre of the band below to its own and falls to that of the band above."""
    heard = mel(np.arange(FFT // 2 + 1) * RATE / FFT)[:, None]
    edges = np.linspace(*mel(np.array([LOWEST, HIGHEST])), BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0, np.minimum((heard - low) / (centre - low), (high - heard) / (high - centre)))
    return weights * (np.arange(len(heard)) > 0)[:, None]


def features(second: np.ndarray) -> np.ndarray:
    """[49, 10] float32 of one second of sound."""
    starts = np.arange((len(second) - FRAME) // STEP + 1) * STEP
    frames = second[starts[:, None] + np.arange(FRAME)] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME))
    bands = np.log(np.abs(np.fft.rfft(frames, FFT)) @ triangles() + FLOOR)
    cosines = np.cos(np.pi / BANDS * np.outer(np.arange(BANDS) + 0.5, np.arange(COEFFICIENTS)))
    return np.asarray(np.sqrt(2 / BANDS) * bands @ cosines, np.float32)


def main(folder: str, *paths: str) -> None:
    """Print the word that each file is heard as."""
    program = qcompiler.load(folder)
    (source,), (answer,) = program.inputs, program.outputs
    for path in paths:
        scores = program.run({source.name: features(samples(path)).reshape(source.shape)})[answer.name]
        print(WORDS[int(np.argmax(scores))], path)


if __name__ == "__main__":
    main(*sys.argv[1:])
