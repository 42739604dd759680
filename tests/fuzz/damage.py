"""A strategy of damaged bytes."""

from __future__ import annotations

from hypothesis import strategies as st

_PIECES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(
        [
            *(b"\0" * 64, b"\xff" * 64, b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\t", b"\n---\n"),
            *(b"\n...\n", b"%YAML 9.9\n", b"%TAG ! x\n", b": ", b"- ", b"&a ", b"*a", b"<<: *a\n"),
            *(b"'", b'"', b"[", b"{", b"}", b"#", b"!!", b"\xed\xa0\x80", b"\xc2\x85", b"PK\3\4"),
        ]
    ),
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, most: int = 4) -> bytes:
    """Bytes of which some are changed, added, left out or moved, or that end too early."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(("write", "write", "insert", "cut", "repeat", "end", "recode")))
        length = draw(st.sampled_from((1, 2, 4, 16, 64, 512)))
        if how == "write":
            piece = draw(_PIECES)
            content = content[:at] + piece + content[at + len(piece) :]
        elif how == "insert":
            content = content[:at] + draw(_PIECES) + content[at:]
        elif how == "cut":
            content = content[:at] + content[at + length :]
        elif how == "repeat":
            content = content[:at] + content[at : at + length] * 3 + content[at + length :]
        elif how == "end":
            content = content[:at]
        else:
            text = content.decode("utf-8", "replace")
            content = text.encode(
                draw(st.sampled_from(("utf-16", "utf-16-le", "utf-32", "utf-8-sig")))
            )
    return content
