"""Carrying the sound of one clip over into another: copied where possible, else encoded anew.

Rules: time 0 is the first frame of the source's pictures. Packets move untouched (bit for bit)
where players of the output's container know the codec (`COPIED`) and packets are short (`LONG`),
else they become AAC, or Opus for webm. Either way sound is cut at whole packets, of which one
is kept when its middle lies inside the clip: at most half a packet, about 12 ms, more or less
than the pictures. Sound that ends early just ends; what cannot be decoded leaves silence.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from numpy.typing import NDArray

from dreamactor.errors import MediaError

MPEG = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
PCM = frozenset({"pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"})
COPIED = {
    ".mp4": MPEG | {"opus", "flac"},
    ".mov": MPEG | PCM,
    ".mkv": MPEG | PCM | {"opus", "vorbis", "flac"},
    ".webm": frozenset({"opus", "vorbis"}),
}
AAC = ("aac", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000), 192_000)
OPUS = ("libopus", (48000,), 128_000)
"""Encoder, sample rates it takes, bits per second."""
PRIMING = 0.1  # seconds; decoders warm up on the packets before time 0, 7 to 50 ms of them
GAP = 0.1  # seconds of missing sound that are filled with silence; less is jitter

LONG = 0.2  # seconds; longer packets, as of PCM in Matroska, cannot be cut at their edges

Packets = Iterator["av.Packet[Any]"]
TimedPacket = tuple[float, "av.Packet[Any]"]
"""Seconds at the middle of a packet, and the packet, ready to be muxed."""


def carry_sound(
    path: Path, source: InputContainer, start: float, output: OutputContainer, suffix: str
) -> Iterator[TimedPacket]:
    """Add a sound track to `output` and say what belongs on it, in order.

    Args:
        path: Of the source, for messages.
        source: Open; has a sound track, of which the first is taken.
        start: Seconds on the source's clock that become 0.
        output: Open, before its first packet.
        suffix: Of the output, one of `COPIED`.

    Returns:
        Iterator over packets up to the end of the source; the caller stops it where the clip ends.

    Raises:
        MediaError: The sound is in an unknown codec.
    """
    track = source.streams.audio[0]
    if track.codec_context is None:
        raise MediaError(f"{path}: its sound is in an unknown codec; pass --no-audio")
    rest = (packet for packet in source.demux(track) if packet.size)
    first = next(rest, None)
    if first is None:
        return iter(())
    length = float((first.duration or 0) * first.time_base)
    packets = chain([first], rest)
    if track.codec_context.codec.canonical_name in COPIED[suffix] and length < LONG:
        target = output.add_stream_from_template(track)
        # Matroska has no edit lists: there priming would delay the pictures instead
        return _copied(packets, target, start, keep_priming=suffix in (".mp4", ".mov"))
    codec, rates, bits = OPUS if suffix == ".webm" else AAC
    rate = min(rates, key=lambda rate: (abs(rate - track.rate), rate))
    layout = "mono" if track.codec_context.channels == 1 else "stereo"
    encoder = output.add_stream(codec, rate=rate, layout=layout)
    assert isinstance(encoder, AudioStream)
    encoder.bit_rate = bits
    return _encoded(packets, track, encoder, start)


def _copied(
    packets: Packets, target: AudioStream, start: float, keep_priming: bool
) -> Iterator[TimedPacket]:
    primed: bool | None = None
    latest = None
    for packet in packets:
        if packet.dts is None or (latest is not None and packet.dts <= latest):
            continue  # damaged; muxers refuse to go back in time
        latest = packet.dts
        shift = round(start / packet.time_base)
        packet.dts -= shift
        packet.pts = packet.dts if packet.pts is None else packet.pts - shift
        begin = float(packet.pts * packet.time_base)
        middle = begin + float((packet.duration or 0) * packet.time_base) / 2
        if primed is None:  # else the first packet is far before the pictures: real sound
            primed = begin > -PRIMING
        if middle < 0 and not (primed and (keep_priming or not packet.is_discard)):
            continue
        packet.stream = target
        yield middle, packet


def _encoded(
    packets: Packets, track: AudioStream, target: AudioStream, start: float
) -> Iterator[TimedPacket]:
    for samples in _samples(packets, track, target, start):
        for packet in target.encode(samples):
            yield _timed(packet)
    for packet in target.encode(None):
        yield _timed(packet)


def _timed(packet: "av.Packet[Any]") -> TimedPacket:
    middle = (packet.pts or 0) + (packet.duration or 0) / 2
    return float(middle * packet.time_base), packet


def _samples(
    packets: Packets, track: AudioStream, target: AudioStream, start: float
) -> Iterator[AudioFrame]:
    """Decoded sound from time 0 on without gaps, in the layout and rate of `target`."""
    rate, layout = target.rate, target.layout.name
    resampler, kind = AudioResampler(format="fltp", layout=layout, rate=rate), None
    position = 0
    for frame in _decoded(packets, track):
        if frame is not None and kind != (frame.format.name, frame.layout.name, frame.rate):
            kind = (frame.format.name, frame.layout.name, frame.rate)  # may change on the way
            resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
        for part in resampler.resample(frame):
            sound: NDArray[Any] = part.to_ndarray()  # (channels, samples) float32
            begin = position
            if part.pts is not None and part.time_base is not None:
                begin = round((float(part.pts * part.time_base) - start) * rate)
            if begin < position == 0:
                sound = sound[:, -begin:]
            elif begin > position and (position == 0 or begin - position > GAP * rate):
                silence = np.zeros((len(sound), begin - position), sound.dtype)
                sound = np.concatenate([silence, sound], axis=1)
            if sound.shape[1]:
                filled = AudioFrame.from_ndarray(np.ascontiguousarray(sound), "fltp", layout)
                filled.sample_rate, filled.pts, filled.time_base = rate, position, Fraction(1, rate)
                position += sound.shape[1]
                yield filled


def _decoded(packets: Packets, track: AudioStream) -> Iterator[AudioFrame | None]:
    for packet in chain(packets, [None]):
        try:
            yield from track.decode(packet)
        except av.error.FFmpegError:
            continue
    yield None  # empties the resampler
