"""A program of its own in which espeak-ng says one sentence: ``python -I espeak_voice.py LIBRARY DATA TEXT OUT.wav``.

Its own, because espeak's pitch flutters on from where the sentence before it ended, and because there are texts of
which espeak dies: one sentence is one wave here, and a death costs no more than that sentence. Nothing of this package
is imported, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import sys
import wave

_SYNCHRONOUS, _DO_NOT_EXIT = 2, 0x8000  # espeak_Initialize: hand over the samples; return when the data is missing
_UTF8, _BY_CHARACTER = 1, 1  # espeak_Synth
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def main(library_path: str, data_path: str, text: str, out: str) -> None:
    """Write the text as espeak's own American voice says it, 16 bit; ends with a sentence on stderr where it cannot."""
    library = ctypes.CDLL(library_path)
    rate = int(library.espeak_Initialize(_SYNCHRONOUS, 0, data_path.encode(), _DO_NOT_EXIT))
    if rate <= 0 or library.espeak_SetVoiceByName(b"en-us"):
        sys.exit("espeak cannot be started; reinstall espeakng-loader")
    samples: list[bytes] = []

    def receive(chunk: ctypes._Pointer[ctypes.c_short], n: int, events: int | None) -> int:
        if chunk and n > 0:
            samples.append(ctypes.string_at(chunk, 2 * n))
        return 0  # go on

    callback = _CALLBACK(receive)
    library.espeak_SetSynthCallback(callback)
    number, pointer = ctypes.c_uint, ctypes.c_void_p
    library.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, number, ctypes.c_int, number, number]
    library.espeak_Synth.argtypes += [pointer, pointer]
    data = text.encode()
    refused = library.espeak_Synth(data, len(data) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None)
    if refused or not any(map(any, samples)):
        sys.exit("espeak says nothing of this text")
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
