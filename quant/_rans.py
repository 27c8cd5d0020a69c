"""An entropy coder in whole numbers: a range variant of asymmetric numeral systems (rANS; Duda 2013,
arXiv:1311.2540).

A symbol that holds ``f`` of the 2^16 slots from ``c`` on takes the state x to (x div f) 2^16 + (x mod f) + c, and
log2(2^16 / f) bits. The state is an integer from 2^32 below 2^48; what would not fit leaves in words of 16 bits. What
goes in last comes out first, so the writer collects all symbols and codes them backwards; the reader gives them in
the order in which they were written, and ends in the state in which the writer began, which is the check on the
stream.

Stream: the final state (6 bytes, little-endian), then the words (2 bytes each, little-endian) in the order of
reading.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from quant.errors import QuantError

SLOT_BITS = 16
SLOTS = 1 << SLOT_BITS
_LOW = 1 << 32
_STATE_BYTES = 6


class Writer:
    """Takes symbols in the order of reading; ``finish`` gives the stream."""

    def __init__(self) -> None:
        self._starts: list[np.ndarray] = []
        self._widths: list[np.ndarray] = []

    def bits(self, ones: np.ndarray, bits: np.ndarray) -> None:
        """Write bits, each with its own number of slots (1 to 2^16 - 1) for a one, which are the first slots."""
        self._starts.append(np.where(bits, 0, ones))
        self._widths.append(np.where(bits, ones, SLOTS - ones))

    def symbols(self, widths: np.ndarray, symbols: np.ndarray) -> None:
        """Write symbols that share one table of slots (at least 1 for each symbol, 2^16 in total)."""
        starts = np.cumsum(widths) - widths
        self._starts.append(starts[symbols])
        self._widths.append(widths[symbols])

    def finish(self) -> bytes:
        """The stream of all that was written."""
        state, words = _LOW, []
        if self._starts:
            starts, widths = np.concatenate(self._starts).tolist(), np.concatenate(self._widths).tolist()
            for start, width in zip(reversed(starts), reversed(widths), strict=True):
                if state >= width << 32:
                    words.append(state & 0xFFFF)
                    state >>= 16
                whole, rest = divmod(state, width)
                state = (whole << 16) + rest + start
        return state.to_bytes(_STATE_BYTES, "little") + np.array(words[::-1], dtype="<u2").tobytes()


class Reader:
    """Gives back what a ``Writer`` was given, asked for in the same order with the same slots."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _STATE_BYTES or len(data) % 2:
            raise QuantError(
                f"expected a stream of at least {_STATE_BYTES} and an even number of bytes, found {len(data)}"
            )
        self._state = int.from_bytes(data[:_STATE_BYTES], "little")
        if not _LOW <= self._state < _LOW << 16:
            raise QuantError(f"expected a coder's state from 2^32 below 2^48, found {self._state}")
        self._words = np.frombuffer(data, dtype="<u2", offset=_STATE_BYTES).tolist()
        self._words.reverse()

    def bits(self, ones: list[int]) -> np.ndarray:
        """The next bits (uint8), one for each number of slots of a one.

        Raises
        ------
        QuantError
            If the stream ends before.
        """
        state, pop, found = self._state, self._words.pop, bytearray(len(ones))
        at = 0
        try:
            for one in ones:
                slot = state & 0xFFFF
                if slot < one:
                    state = one * (state >> 16) + slot
                    found[at] = 1
                else:
                    state = (65536 - one) * (state >> 16) + slot - one  # a global name would take longer
                if state < 4294967296:
                    state = state << 16 | pop()
                at += 1
        except IndexError:
            raise QuantError("expected more words in the coded stream, found its end") from None
        self._state = state
        return np.frombuffer(found, dtype=np.uint8)

    def symbols(self, widths: np.ndarray, count: int) -> np.ndarray:
        """The next ``count`` symbols (uint8) that share one table of slots.

        Raises
        ------
        QuantError
            If the stream ends before.
        """
        state, words, found = self._state, self._words, []
        each, starts = widths.tolist(), (np.cumsum(widths) - widths).tolist()
        try:
            for _ in range(count):
                slot = state & 0xFFFF
                symbol = bisect_right(starts, slot) - 1
                state = each[symbol] * (state >> 16) + slot - starts[symbol]
                found.append(symbol)
                if state < _LOW:
                    state = state << 16 | words.pop()
        except IndexError:
            raise QuantError("expected more words in the coded stream, found its end") from None
        self._state = state
        return np.array(found, dtype=np.uint8)

    def finish(self) -> None:
        """Check that the stream is used up and sound.

        Raises
        ------
        QuantError
            If words are left over, or the state is not the one that writing begins in.
        """
        if self._words or self._state != _LOW:
            left = f"{len(self._words)} words left over and state {self._state}"
            raise QuantError(f"expected the coded stream to end in its first state, found {left}")
