from writebehind.engine.core.printable import printable


def test_printable() -> None:
    """What cannot be printed is escaped, all else stays."""
    assert printable("Grüße, 'x' \\N") == "Grüße, 'x' \\N"
    assert printable("a\r\n\x1b[2Jb\u202e\0") == "a\\r\\n\\x1b[2Jb\\u202e\\x00"
